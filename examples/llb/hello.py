"""A directory with two files and a link, made in one step on an empty filesystem."""

import sys

from boxwright import llb

actions = (
    llb.mkdir("/srv/www", parents=True)
    .then(llb.mkfile("/srv/www/index.html", b"<h1>hello</h1>\n"))
    .then(llb.mkfile("/srv/www/robots.txt", b"User-agent: *\n", 0o600))
    .then(llb.symlink("index.html", "/srv/www/default.html"))
)
result = llb.scratch().file(actions, name="write the site")

sys.stdout.buffer.write(result.marshal().SerializeToString())
