"""Drives the playground: a dry run, an override, errors, a key, widths, colours, the keyboard."""

import pathlib
import sys

from playwright.sync_api import expect, sync_playwright

address, keyed, chromium, pictures = sys.argv[1:]
pictures = pathlib.Path(pictures)
pictures.mkdir(parents=True, exist_ok=True)
BIRD = "Which bird is singing in this recording?"
CONTRAST = """() => {
  const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (c) => {
    const linear = (x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
    const [r, g, b] = c.map((x) => linear(x / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const a = light(rgb(getComputedStyle(e).color).slice(0, 3)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push(`${e.tagName} ${e.textContent.trim().slice(0, 30)} ${ratio}`);
  }
  return low;
}"""


def opened(browser, base, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith((base, "data:"))
            else problems.append(f"asks {request.url}"))
    page.goto(base)
    return page, problems


def check_layout(page, width, scheme, name):
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{name}: {wide} pixels in {width}"
    low = page.evaluate(CONTRAST)
    assert not low, f"{name}: too little contrast: {low}"
    page.screenshot(path=pictures / f"playground-{name}-{width}-{scheme}.png", full_page=True)


def dry_run_and_override(browser, width, scheme):
    page, problems = opened(browser, address, width, scheme)
    check_layout(page, width, scheme, "empty")
    # By keyboard alone: the prompt is the first field.
    page.keyboard.press("Tab")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type(BIRD)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#ranked li")).to_have_count(4)
    expect(page.locator("#ranked li").first).to_contain_text("1. birdnet")
    expect(page.locator("#summary")).to_contain_text("birdnet at mock")
    expect(page.locator("#excluded")).to_contain_text("not name = gpt2")
    expect(page.locator("#served")).to_contain_text("generation g")
    for part in ("probability", "learned", "memory", "words"):
        bars = page.locator(f"#ranked .bar.{part} i.part")
        expect(bars).to_have_count(4)
        widths = [bar.bounding_box()["width"] for bar in bars.all()]
        assert max(widths) > 1, (part, widths)
    shares = page.locator("#ranked .probability .value").all_inner_texts()
    shares = [float(share.removesuffix(" %")) for share in shares]
    assert shares == sorted(shares, reverse=True) and sum(shares) > 99, shares
    page.get_by_text("Nearest models and domains").click()
    expect(page.locator("#near tbody tr").first).to_be_visible()
    check_layout(page, width, scheme, "answer")

    # What is sent without a choice is routed; a choice passes through.
    send = page.locator("#send button")
    send.click()
    expect(page.locator("#sent")).to_contain_text("auto went to birdnet")
    expect(page.locator("#reply")).to_contain_text("birdnet of mock would answer here.")
    page.locator("#ranked input[type=radio]").nth(1).focus()
    page.keyboard.press("Space")
    chosen = page.locator("#model").input_value()
    assert chosen not in ("auto", "birdnet"), chosen
    send.click()
    expect(page.locator("#sent")).to_contain_text(f"{chosen} passed through")
    expect(page.locator("#reply")).to_contain_text(f"{chosen} of mock would answer here.")
    # Also one that the policy excludes.
    page.locator("#model").select_option("gpt2")
    page.locator("#api").select_option("anthropic_messages")
    page.locator("#model").select_option("gpt2")
    send.click()
    expect(page.locator("#reply")).to_contain_text("gpt2 of mock would answer here.")
    check_layout(page, width, scheme, "sent")
    # Every control is reached by Tab and shows that it has the focus.
    reached = set()
    page.locator("h1").click()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        at_body = page.evaluate("document.activeElement === document.body")
        assert at_body or outline != "none"
    assert {"prompt", "api", "top", "route", "model", "SUMMARY", "BUTTON"} <= reached, reached
    assert not problems, problems
    page.context.close()


def text_is_text(browser):
    page, problems = opened(browser, address, 800, "light")
    page.locator("#prompt").fill("<img src=x onerror=alert(1)> Who is speaking?")
    page.locator("#route").click()
    expect(page.locator("#ranked li").first).to_be_visible()
    assert page.locator("main img").count() == 0
    page.locator("#prompt").fill("   ")
    page.locator("#route").click()
    expect(page.locator("#problem")).to_be_visible()
    expect(page.locator("#answer")).to_be_hidden()
    # The browser itself notes the status of a failed request.
    assert all("422" in problem for problem in problems), problems
    page.context.close()


def a_key_is_asked_for(browser):
    page, problems = opened(browser, keyed, 400, "light")
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#problem")).to_contain_text("expected the key")
    page.locator("#key").fill("secret")
    page.locator("#key").press("Tab")
    expect(page.locator("#model option").first).to_have_text("auto")
    expect(page.locator("#problem")).to_be_hidden()
    page.locator("#prompt").fill(BIRD)
    page.locator("#route").click()
    expect(page.locator("#ranked li").first).to_contain_text("birdnet")
    assert all("401" in problem for problem in problems), problems
    page.context.close()


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    for width in (400, 1280):
        for scheme in ("light", "dark"):
            dry_run_and_override(browser, width, scheme)
            print(f"{width} pixels, {scheme}: dry run, override, layout, contrast, keyboard")
    text_is_text(browser)
    a_key_is_asked_for(browser)
    print("text stays text; a key is asked for")
    browser.close()
