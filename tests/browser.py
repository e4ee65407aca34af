"""A real browser for tests, without a library: Chromium, driven through a pipe by its DevTools protocol."""

import json
import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """with Browser(folder) as browser: browser.open(path); browser.run("1 + 1") == 2. folder: for its profile."""

    def __init__(self, folder):
        self.folder, self.number, self.errors, self.session = folder, 0, [], None

    def __enter__(self):
        to_read, to_write = os.pipe(), os.pipe()
        command = f"exec {find()} --headless --no-sandbox --disable-gpu --remote-debugging-pipe "
        command += f"--window-size=1300,900 --user-data-dir={self.folder} 3<&{to_read[0]} 4>&{to_write[1]}"
        pipes = {"pass_fds": (to_read[0], to_write[1]), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(["bash", "-c", command], **pipes)
        os.close(to_read[0])
        os.close(to_write[1])
        self.out, self.back = os.fdopen(to_read[1], "wb"), os.fdopen(to_write[0], "rb")
        self.buffer = b""
        return self

    def __exit__(self, *_):
        self.session = None
        self.call("Browser.close")
        self.out.close()
        self.back.close()
        self.process.wait(timeout=20)

    def _message(self):
        while b"\0" not in self.buffer:
            more = os.read(self.back.fileno(), 1 << 16)
            if not more:
                raise ConnectionError("the browser has exited")
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _wait(self, wanted):
        while True:
            message = self._message()
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"]["text"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            if wanted(message):
                return message

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        self.out.flush()
        answer = self._wait(lambda message: message.get("id") == self.number)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=f"file://{path}")
        self._wait(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, script):
        """The value of a script in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self):
        """PNG bytes, base64."""
        return self.call("Page.captureScreenshot", format="png")["data"]
