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

  constructor(devices, detector, take) {
    Object.assign(this, { devices, detector, take });
    at("use-camera").addEventListener("click", () => this.#open());
    at("camera-close").addEventListener("click", () => at("camera").close());
    at("camera").addEventListener("close", () => this.#stop());
    at("take").addEventListener("click", () => this.#photograph());
    at("live").addEventListener("change", () => this.#live());
    at("lens").addEventListener("change", () => this.#start(at("lens").value));
  }

  async #open() {
    at("camera").showModal();
    await this.#start();
    this.#live();
  }

  async #start(deviceId) {
    this.#stop();
    at("camera-state").textContent = "The browser asks whether this page may use the camera.";
    try {
      const video = { deviceId, facingMode: deviceId ? undefined : "environment", width: { ideal: 1920 }, height: { ideal: 1440 } };
      this.#stream = await this.devices.getUserMedia({ video });
    } catch (error) {
      at("camera-state").textContent = refusal(error);
      return;
    }
    if (!at("camera").open) return this.#stop();
    at("camera-state").textContent = "";
    at("video").srcObject = this.#stream;
    at("take").disabled = false;
    await this.#lenses();
  }

  async #lenses() {
    const found = (await this.devices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    const now = this.#stream?.getVideoTracks()[0]?.getSettings().deviceId;
    at("lens").replaceChildren(...found.map(({ deviceId, label }, n) =>
      make("option", { value: deviceId, textContent: label || `camera ${n + 1}`, selected: deviceId === now })));
    at("lens-group").hidden = found.length < 2;
  }

  #stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
    at("video").srcObject = null;
    at("take").disabled = true;
    at("live-view").hidden = true;
  }

  async #photograph() {
    const frame = await createImageBitmap(at("video"));
    const canvas = new OffscreenCanvas(frame.width, frame.height);
    canvas.getContext("2d").drawImage(frame, 0, 0);
    frame.close();
    const blob = await canvas.convertToBlob({ type: "image/png" });
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "");
    at("camera").close();
    this.take(new File([blob], `camera-${time}.png`, { type: "image/png" }));
  }

  /** One frame after another, for as long as the box is ticked and the camera runs. */
  async #live() {
    const stream = this.#stream;
    const view = at("live-view");
    try {
      while (at("live").checked && stream && stream === this.#stream) {
        if (at("video").readyState < 2) {
          await new Promise((resolve) => setTimeout(resolve, 50));
          continue;
        }
        const { overlay, picture, thumbnail, times } = await this.detector.map(await createImageBitmap(at("video")), { side: LIVE_SIDE });
        if (stream !== this.#stream) break;
        [view.width, view.height] = [overlay.width, overlay.height];
        view.getContext("2d").drawImage(overlay, 0, 0);
        for (const bitmap of [overlay, picture, thumbnail]) bitmap.close();
        view.hidden = !at("live").checked;
        at("camera-state").textContent = `${seconds(times.total)} a frame`;
      }
    } catch (error) {
      at("camera-state").textContent = error.message;
    }
    view.hidden = true;
  }
}

function refusal({ name, message }) {
  if (name === "NotAllowedError") return "The camera was not permitted. Permit it in the browser's settings for this page.";
  if (name === "NotFoundError") return "There is no camera.";
  if (name === "NotReadableError") return "The camera does not start: another program may be using it.";
  return `The camera does not start: ${message}`;
}
