"""Headless Chromium, driven over the pipe of its DevTools protocol.

What must hold: a browser lives in a folder of its own and is gone at the end; each page has a context
of its own, so no two tests share storage, cookies or connections; what a page says on its console, asks of the
network and complains of is kept, for assertions and for the report of a failure.
"""

import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from driver import Failure

# How long a browser may take for what it does by itself: start, load a page, take a picture.
PATIENCE = 60.0
# Between two looks at a condition in a page.
LOOK = 0.05
# Lines of the console that a page keeps.
LINES = 2000


def program():
    """The browser, or None. CHROMIUM names another one than that of the search path."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One Chromium process."""

    def __init__(self, folder):
        to_browser, from_browser = os.pipe(), os.pipe()
        arguments = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,800",
            "--lang=en",
        ]
        if os.geteuid() == 0:
            # Its sandbox refuses root. The pages here are the tests' own and the server's.
            arguments.append("--no-sandbox")
        # The browser reads from 3 and writes to 4.
        inner = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        self.errors = open(Path(folder) / "chromium.log", "w+")
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", inner, program(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self.errors,
            stderr=self.errors,
            pass_fds=(to_browser[0], from_browser[1]),
            start_new_session=True,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.output = os.fdopen(to_browser[1], "wb", buffering=0)
        self.input = os.fdopen(from_browser[0], "rb")
        self.lock = threading.Lock()
        self.last = 0
        self.answers = {}
        self.pages = {}
        threading.Thread(target=self._read, daemon=True).start()
        self.version = self.call("Browser.getVersion")["product"]

    def _read(self):
        rest = b""
        while part := self.input.read1(1 << 16):
            *whole, rest = (rest + part).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    waiting = self.answers.get(message["id"])
                    if waiting is not None:
                        waiting.put(message)
                elif page := self.pages.get(message.get("sessionId")):
                    page.hear(message["method"], message["params"])
        for waiting in list(self.answers.values()):
            waiting.put(None)

    def call(self, method, session=None, patience=PATIENCE, **params):
        """Calls a method of the protocol and returns its result."""
        waiting = queue.SimpleQueue()
        with self.lock:
            self.last += 1
            number = self.last
            self.answers[number] = waiting
            message = {"id": number, "method": method, "params": params}
            if session:
                message["sessionId"] = session
            try:
                self.output.write(json.dumps(message).encode() + b"\0")
            except OSError as error:
                raise Failure(f"the browser is gone: {error}{self._stderr()}") from None
        try:
            answer = waiting.get(timeout=patience)
        except queue.Empty:
            what = params.get("expression", "")[:200]
            raise Failure(f"waited {patience:.0f} s for the browser to answer {method} {what}") from None
        finally:
            del self.answers[number]
        if answer is None:
            raise Failure(f"the browser ended{self._stderr()}")
        if "error" in answer:
            raise Failure(f"{method}: {answer['error'].get('message')}")
        return answer["result"]

    def _stderr(self):
        self.errors.flush()
        lines = Path(self.errors.name).read_text(errors="replace").splitlines()
        return "".join(f"\n    chromium: {line}" for line in lines[-10:])

    def end(self):
        """Ends it in any case."""
        try:
            self.call("Browser.close", patience=10)
            self.process.wait(timeout=20)
        except (Failure, subprocess.TimeoutExpired):
            pass
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()
        self.errors.close()


class Page:
    """A page in a context of its own."""

    def __init__(self, browser):
        self.browser = browser
        # Gets each string that the page gives to its function `emit`.
        self.emit = lambda _: None
        self.console = []
        self.requests = []
        self.complaints = []
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.pages[self.session] = self
        for domain in ("Runtime", "Log", "Network", "Page", "Audits"):
            self.call(f"{domain}.enable")
        self.call("Runtime.addBinding", name="emit")

    def call(self, method, **params):
        """Calls a method of the protocol for this page."""
        return self.browser.call(method, session=self.session, **params)

    def hear(self, method, params):
        """Takes an event of the protocol, on the thread that reads."""
        match method:
            case "Runtime.bindingCalled" if params["name"] == "emit":
                self.emit(params["payload"])
            case "Runtime.consoleAPICalled":
                text = " ".join(str(value.get("value", value.get("description", ""))) for value in params["args"])
                self._note(params["type"], text)
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                thrown = details.get("exception", {}).get("description", "")
                self._note("exception", f"{details['text']} {thrown}")
            case "Log.entryAdded":
                entry = params["entry"]
                self._note(entry["level"], f"[{entry['source']}] {entry['text']} {entry.get('url', '')}")
            case "Audits.issueAdded" if params["issue"]["code"] == "ContentSecurityPolicyIssue":
                self._note("error", f"[policy] {json.dumps(params['issue']['details'])}")
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Network.webSocketCreated":
                self.requests.append(params["url"])

    def _note(self, level, text):
        # What a page writes itself may be as long as it likes.
        line = f"{level}: {text[:2000]}"
        if level in ("error", "exception", "assert"):
            self.complaints.append(line)
        self.console.append(line)
        del self.console[:-LINES]

    def open(self, url):
        """Loads a page and waits for its `load` event."""
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise Failure(f"{url}: {answer['errorText']}")
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'", f"{url} to load")

    def shows(self, selector, text):
        """Waits until an element with exactly this text can be seen."""
        elements = f"[...document.querySelectorAll({json.dumps(selector)})]"
        fits = f"element.innerText.trim() === {json.dumps(text)} && element.getClientRects().length"
        self.until(f"{elements}.some((element) => {fits})", f"{text!r} in {selector}")

    def evaluate(self, expression):
        """The value of an expression; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            raise Failure(f"in the page: {details['text']} {thrown}\n    of {expression[:500]}")
        return answer["result"].get("value")

    def until(self, expression, what, patience=PATIENCE):
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + patience
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise Failure(f"waited {patience:.0f} s for {what}")
            time.sleep(LOOK)
        return value

    def element(self, selector, what=None, patience=PATIENCE):
        """Waits for an element that can be seen and that nothing covers; its middle."""
        found = f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            if (!element) return null;
            element.scrollIntoView({{ block: 'center' }});
            const box = element.getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            return box.width && box.height && element.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
        }})()"""
        return self.until(found, what or f"an element {selector}", patience)

    def click(self, selector):
        """Clicks in the middle of an element that has come to rest, as a mouse does."""
        before, at = None, self.element(selector)
        while before != at:
            time.sleep(LOOK)
            before, at = at, self.element(selector)
        x, y = at
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def open_by(self, selector, opened):
        """Clicks until another element can be seen: in a list that changes, what is meant may move away."""
        end = time.monotonic() + PATIENCE
        while True:
            self.click(selector)
            try:
                return self.element(opened, patience=5)
            except Failure:
                if time.monotonic() > end:
                    raise

    def type(self, selector, text):
        """Clicks into a field and types."""
        self.click(selector)
        self.until(f"document.activeElement?.matches({json.dumps(selector)})", f"the focus in {selector}")
        self.call("Input.insertText", text=text)

    def enter(self):
        """Presses the enter key."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def screenshot(self, path):
        """Writes a picture of what can be seen, as PNG."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        """Closes it, and with it all that it has open."""
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
        self.browser.pages.pop(self.session, None)
