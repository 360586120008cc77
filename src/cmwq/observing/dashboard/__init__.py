"""The dashboard: a web page that shows what the pools of other processes do, and did in the last two days.

`cmwq dashboard` is a process of its own. It asks the watched processes for their pictures through their sockets, and
hands browsers what it makes of them. Read in this order: `sources` (where pictures come from), `watch` (one process,
asked once an interval), `watches` (all of them), `history`, `timeline` and `rates` (what is kept), `message` and
`verdict` (what browsers get), `app` and `gate` (how they get it), `serving`.

Guarantees
- However many browsers look, a process is asked for one picture per interval (for its stacks, once a second at most).
- Memory is bounded for days, here and in the browser: each history has a fixed number of points and of segments. A
  browser that reads slowly is not queued for: it gets the newest picture when it has read the one before.
- A process that ends, or stops answering, takes nothing with it: its last picture stays. With `--all`, one that starts
  again under the same command takes the place of the one that ended.
- Nobody is let in without the token, from another origin, or under another name of the host (`gate`). Nothing on the
  page comes from elsewhere, and nothing that the page can do changes anything in a watched process.

Starlette and uvicorn come with the extra `dashboard`, and are imported only by `app` and `serving`.
"""
