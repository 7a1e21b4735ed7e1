"""Reports: figures of many ways of sampling, and the page that shows them.

`frontier` measures rows under one protocol, `page` writes one self-contained HTML file,
`picture` lays images out in PNG files that carry their settings.
"""
