/* Search on pages that are opened from a folder: browsers start no workers there, so an iframe takes their place. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script>
        window.postMessage = data => parent.dispatchEvent(new CustomEvent("iframe-worker", {detail: data}));
        window.importScripts = (...urls) => urls.reduce((last, url) => last.then(() => new Promise(done => {
          const script = document.createElement("script");
          script.src = new URL(url, "${url}").href;
          script.onload = done;
          document.body.appendChild(script);
        })), Promise.resolve());
      </script><script src="${url}"></script>`;
      this.frame.addEventListener("load", () => {
        this.ready = true;
        this.waiting.splice(0).forEach(data => this.postMessage(data));
      });
      window.addEventListener("iframe-worker", event => {
        this.dispatchEvent(new MessageEvent("message", {data: event.detail}));
      });
      document.body.appendChild(this.frame);
    }

    postMessage(data) {
      if (!this.ready) this.waiting.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data}));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
