// The camera: a photograph is taken and analysed like any other, or what the camera sees is analysed live.

import { at, make } from "./dom.js";
import { seconds } from "./words.js";

const LIVE_SIDE = 960; // of what is drawn live, in pixels

/** Shows the button if there is a camera. `take` receives a photograph as a file. */
export function camera(detector, take) {
  const devices = navigator.mediaDevices;
  if (!devices?.getUserMedia) return; // as outside a secure context
  devices.enumerateDevices().then((found) => {
    at("use-camera").hidden = !found.some(({ kind }) => kind === "videoinput");
  }, () => {});
  new Camera(devices, detector, take);
}

class Camera {
  #stream = null;
  #turn = 0; // of starting it: what an earlier one brings late is stopped
  #run = 0; // of the live view: only the last one goes on

  constructor(devices, detector, take) {
    Object.assign(this, { devices, detector, take });
    at("use-camera").addEventListener("click", () => this.#open());
    at("camera-close").addEventListener("click", () => at("camera").close());
    at("camera").addEventListener("close", () => at("camera").open || this.#stop()); // it may be open again by now
    at("take").addEventListener("click", () => this.#photograph());
    at("live").addEventListener("change", () => this.#live());
    at("lens").addEventListener("change", () => this.#start(at("lens").value).then(() => this.#live()));
    at("video").addEventListener("loadeddata", () => { at("take").disabled = !this.#stream; });
  }

  async #open() {
    at("camera").showModal();
    await this.#start();
    this.#live();
  }

  async #start(deviceId) {
    this.#stop();
    const turn = this.#turn;
    at("camera-said").textContent = "The browser asks whether this page may use the camera.";
    let stream;
    try {
      const video = { deviceId, facingMode: deviceId ? undefined : "environment", width: { ideal: 1920 }, height: { ideal: 1440 } };
      stream = await this.devices.getUserMedia({ video });
    } catch (error) {
      if (turn === this.#turn) at("camera-said").textContent = refusal(error);
      return;
    }
    if (turn !== this.#turn || !at("camera").open) return stream.getTracks().forEach((track) => track.stop());
    this.#stream = stream;
    at("camera-said").textContent = "";
    at("video").srcObject = stream;
    await this.#lenses().catch(() => {}); // the camera runs without their names
  }

  async #lenses() {
    const found = (await this.devices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    const now = this.#stream?.getVideoTracks()[0]?.getSettings().deviceId;
    at("lens").replaceChildren(...found.map(({ deviceId, label }, n) =>
      make("option", { value: deviceId, textContent: label || `camera ${n + 1}`, selected: deviceId === now })));
    at("lens-group").hidden = found.length < 2;
  }

  #stop() {
    this.#turn += 1;
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    at("video").srcObject = null;
    at("take").disabled = true;
    at("live-view").hidden = true;
    at("camera-time").textContent = "";
  }

  async #photograph() {
    try {
      const file = await this.#taken();
      at("camera").close();
      this.take(file);
    } catch (error) {
      at("camera-said").textContent = `The photograph could not be taken: ${error.message}`;
    }
  }

  /** What the camera sees now, as a file. */
  async #taken() {
    const frame = await createImageBitmap(at("video"));
    const canvas = new OffscreenCanvas(frame.width, frame.height);
    canvas.getContext("2d").drawImage(frame, 0, 0);
    frame.close();
    const blob = await canvas.convertToBlob({ type: "image/png" });
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "");
    return new File([blob], `camera-${time}.png`, { type: "image/png" });
  }

  /** One frame after another, for as long as the box is ticked and the camera runs. */
  async #live() {
    const stream = this.#stream;
    const run = ++this.#run;
    const on = () => stream && stream === this.#stream && run === this.#run && at("live").checked;
    const view = at("live-view");
    try {
      while (on()) {
        if (at("video").readyState < 2) {
          await new Promise((resolve) => setTimeout(resolve, 50));
          continue;
        }
        const { overlay, picture, thumbnail, times } = await this.detector.map(await createImageBitmap(at("video")), { side: LIVE_SIDE });
        if (on()) {
          [view.width, view.height] = [overlay.width, overlay.height];
          view.getContext("2d").drawImage(overlay, 0, 0);
          view.hidden = false;
          at("camera-said").textContent = "";
          at("camera-time").textContent = `${seconds(times.total)} a frame`;
        }
        for (const bitmap of [overlay, picture, thumbnail]) bitmap.close();
      }
    } catch (error) {
      if (!on()) return;
      at("camera-said").textContent = error.message;
      at("live").checked = false; // so that it can be chosen again
    }
    if (run !== this.#run) return; // the next one has the view
    view.hidden = true;
    at("camera-time").textContent = "";
  }
}

function refusal({ name, message }) {
  if (name === "NotAllowedError") return "The camera was not permitted. Permit it in the browser's settings for this page.";
  if (name === "NotFoundError") return "There is no camera.";
  if (name === "NotReadableError") return "The camera does not start: another program may be using it.";
  return `The camera does not start: ${message}`;
}
