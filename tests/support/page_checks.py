"""What every page is held to, at 1280 x 900 and 390 x 844, light and dark: each check is one function over a page.

A check returns what is wrong, a line for each thing, and an empty list where all is well; `problems` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.support.browser import overflow, violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SIZES: Final = (WIDE, NARROW)
SCHEMES: Final = ("light", "dark")
FONT_PX: Final = {1280: 15, 390: 16}
MOST_SHIFT: Final = 0.02
LEAST_CONTRAST: Final = 3.0
_CONTROLS: Final = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']"
_WATCH: Final = """
window.shift = 0; window.broken = [];
new PerformanceObserver(list => { for (const e of list.getEntries()) if (!e.hadRecentInput) window.shift += e.value; })
  .observe({type: 'layout-shift', buffered: true});
document.addEventListener('securitypolicyviolation', e => window.broken.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


def wrong_font(page: Page) -> list[str]:
    """The size of text, where it is not 15 px, and 16 px on a phone."""
    size = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    expected = FONT_PX[page.evaluate("innerWidth")]
    return [] if size == expected else [f"text of {size} px, expected {expected}"]


def too_wide(page: Page) -> list[str]:
    """By how much the page is wider than its window."""
    more = overflow(page)
    return [f"{more} px wider than the window"] if more > 0 else []


def broken_words(page: Page) -> list[str]:
    """The words of table cells that stand in more than one line; a hyphen or a slash may end a line."""
    return list(
        page.evaluate(
            r"""() => {
            const found = [], range = document.createRange();
            for (const cell of document.querySelectorAll('td, th')) {
              const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
              for (let text = texts.nextNode(); text; text = texts.nextNode()) {
                if (text.parentElement.closest('option, details:not([open]) > :not(summary)')) continue;
                for (const word of text.data.matchAll(/[^\s\/=.,:;_-]+/gu)) {
                  range.setStart(text, word.index); range.setEnd(text, word.index + word[0].length);
                  const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
                  if (lines.size > 1) found.push(`the word ${word[0]} of a cell is broken`);
                }
              }
            }
            return found.slice(0, 5);
            }"""
        )
    )


def small_targets(page: Page) -> list[str]:
    """Controls that are too low: 44 px for buttons, fields, tabs and facets on a phone, 24 px for all out of text."""
    return list(
        page.evaluate(
            r"""() => {
            const found = [], phone = innerWidth < 500;
            const large = 'button, input:not([type=checkbox], [type=radio], [type=hidden]), select, textarea, '
              + '.menu a, .facet a, .tabs .heads label';
            for (const one of document.querySelectorAll('a, summary, ' + large)) {
              const box = one.getBoundingClientRect(), style = getComputedStyle(one);
              if (!box.height || style.visibility === 'hidden' || one.closest('.skip, .sr, svg, .prose')) continue;
              if (one.matches('.skip')) continue;
              const is_large = one.matches(large), in_text = style.display === 'inline';
              const least = is_large && phone ? 44 : is_large || !in_text ? 24 : 0;
              if (box.height < least - .5)
                found.push(`${one.tagName} ${one.className} "${one.textContent.trim().slice(0, 30)}": ${box.height} px`);
            }
            return [...new Set(found)].slice(0, 5);
            }"""
        )
    )


def faint_borders(page: Page) -> list[str]:
    """Fields whose border has a contrast below 3 on the page. axe measures that of texts, but not of borders."""
    return list(
        page.evaluate(
            r"""least => {
            const light = color => {
              const [r, g, b] = color.match(/[\d.]+/g).map(Number).map(v => {
                const s = v / 255; return s <= .04045 ? s / 12.92 : ((s + .055) / 1.055) ** 2.4; });
              return .2126 * r + .7152 * g + .0722 * b; };
            const paper = light(getComputedStyle(document.documentElement).backgroundColor), found = [];
            for (const one of document.querySelectorAll('input:not([type=hidden], [type=radio], [type=range]), select, textarea')) {
              if (!one.getBoundingClientRect().height || one.type === 'checkbox') continue;
              const line = light(getComputedStyle(one).borderTopColor);
              const ratio = (Math.max(line, paper) + .05) / (Math.min(line, paper) + .05);
              if (ratio < least) found.push(`the border of ${one.name}: ${ratio.toFixed(2)}`);
            }
            return found; }""",
            LEAST_CONTRAST,
        )
    )


def moved(page: Page) -> list[str]:
    """The layout shift since the page came, where it is above 0.02."""
    shift = page.evaluate("window.shift")
    return [f"a layout shift of {shift}"] if shift > MOST_SHIFT else []


def against_policy(page: Page) -> list[str]:
    """What the policy of the page forbade, and styles and scripts that are written into the page."""
    inline = page.evaluate("document.querySelectorAll('[style], style, script:not([src])').length")
    return [*page.evaluate("window.broken"), *([f"{inline} inline styles or scripts"] if inline else [])]


def foreign(page: Page) -> list[str]:
    """What came from another host."""
    return list(
        page.evaluate(
            "performance.getEntriesByType('resource').map(e => e.name)"
            ".filter(name => !name.startsWith(location.origin + '/') && !name.startsWith('data:'))"
        )
    )


def faint_texts(page: Page) -> list[str]:
    """Texts whose contrast is below 4.5, as axe finds them."""
    return violations(page, "color-contrast")


CHECKS: Final = (
    *(wrong_font, too_wide, broken_words, small_targets, faint_borders, moved, against_policy, foreign),
    violations,
)
OF_COLOURS: Final = (faint_borders, faint_texts, against_policy)
"""The checks whose answer depends on the scheme."""


def problems(page: Page, checks: Iterable[Callable[[Page], list[str]]] = CHECKS) -> list[str]:
    """What all checks find wrong with a page as it stands."""
    return [text for check in checks for text in check(page)]


def problems_after_use(page: Page) -> list[str]:
    """What is wrong with a page of any size that a reader has worked on: all that needs no count from its start."""
    return [
        text for check in (too_wide, broken_words, small_targets, faint_borders, violations) for text in check(page)
    ]


def unreached(page: Page) -> list[str]:
    """The controls that Tab does not reach in one round, and those whose focus is not seen: no mark, or covered."""
    waiting = page.evaluate(
        """controls => {
        window.name_of = one => `${one.tagName} ${one.getAttribute('aria-label') ?? one.name ?? ''} `
          + (one.textContent.trim() || one.value || one.href || '').slice(0, 40);
        let number = 0;
        for (const one of document.querySelectorAll(controls)) {
          if (one.disabled || one.tabIndex < 0 || !one.checkVisibility({visibilityProperty: true})) continue;
          if (one.type === 'radio' && !one.checked) continue;  // the arrow keys reach the others
          one.dataset.control = number++;
        }
        document.activeElement.blur();
        return number; }""",
        _CONTROLS,
    )
    unseen: list[str] = []
    for _ in range(waiting + 1):
        page.keyboard.press("Tab")
        unseen += page.evaluate(
            """() => {
            const one = document.activeElement;
            if (!one || one === document.body || one.dataset.seen) return [];
            one.dataset.seen = '1';
            const shown = one.closest('.heads label') ?? one, style = getComputedStyle(shown);
            const is_marked = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1
              && style.outlineColor !== 'rgba(0, 0, 0, 0)';
            const box = shown.getBoundingClientRect();
            const x = Math.min(Math.max(box.x, 0) + Math.min(box.width, 20) / 2, innerWidth - 1);
            const y = Math.min(Math.max(box.y, 0) + Math.min(box.height, 20) / 2, innerHeight - 1);
            const above = document.elementFromPoint(x, y);
            const is_covered = above && !shown.contains(above) && !above.contains(shown);
            return [...(is_marked ? [] : [`no mark on ${name_of(one)}`]),
              ...(is_covered ? [`${name_of(one)} lies below ${name_of(above)}`] : [])]; }"""
        )
    missed = page.evaluate(
        "[...document.querySelectorAll('[data-control]:not([data-seen])')].map(one => `not reached: ${name_of(one)}`)"
    )
    return [*unseen, *missed]


@contextmanager
def watched(browser: Browser, size: dict[str, int], scheme: str, *, script: bool = True) -> Iterator[Page]:
    """A page of this size and scheme, whose layout shifts and breaches of the policy are counted."""
    context = browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=script)  # type: ignore[arg-type]
    context.add_init_script(_WATCH)
    yield context.new_page()
    context.close()


def look_at(
    browser: Browser,
    url: str,
    paths: Iterable[str],
    *,
    first: str = "",
    schemes: Iterable[str] = SCHEMES,
    wide: bool = True,
) -> dict[str, list[str]]:
    """The problems of pages at both sizes and in both schemes, by page; only those that have some.

    `first` is an address that lets the browser in. Without `wide`, the pages are looked at on a phone only.
    """
    found: dict[str, list[str]] = {}
    for size in SIZES if wide else SIZES[1:]:
        for scheme in schemes:
            with watched(browser, size, scheme) as page:
                if first:
                    page.goto(first)
                    page.wait_for_url(f"{url}/")
                for path in paths:
                    page.goto(url + path)
                    wrong = problems(page, CHECKS if scheme == "light" else OF_COLOURS)
                    if wrong:
                        found[f"{path} at {size['width']}, {scheme}"] = wrong
    return found
