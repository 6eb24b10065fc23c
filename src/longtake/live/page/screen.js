// The canvas that the video is drawn on, as large as it is shown, so that the browser's own scaling adds nothing.

export class Screen {
  #canvas;
  #context;
  /** @type {ImageBitmap | HTMLImageElement | null} */
  #shown = null;
  #sharp = false;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  /** Whether pixels are shown as squares. */
  get sharp() {
    return this.#sharp;
  }

  set sharp(sharp) {
    this.#sharp = sharp;
    this.#draw();
  }

  /**
   * Shows a picture, which belongs to the screen from now on.
   * @param {ImageBitmap | HTMLImageElement} picture
   */
  show(picture) {
    const before = this.#shown;
    this.#shown = picture;
    this.#draw();
    if (before instanceof ImageBitmap) before.close();
  }

  /** Shows nothing. */
  clear() {
    if (this.#shown instanceof ImageBitmap) this.#shown.close();
    this.#shown = null;
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
  }

  #fit() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const { clientWidth, clientHeight } = this.#canvas;
    const width = Math.max(1, Math.round(clientWidth * ratio));
    const height = Math.max(1, Math.round(clientHeight * ratio));
    if (width === this.#canvas.width && height === this.#canvas.height) return;
    this.#canvas.width = width;
    this.#canvas.height = height;
    this.#draw();
  }

  #draw() {
    if (!this.#shown) return;
    const { width, height } = this.#canvas;
    this.#context.imageSmoothingEnabled = !this.#sharp;
    this.#context.imageSmoothingQuality = "high"; // a cubic in today's browsers: much better than the bilinear of CSS
    this.#context.drawImage(this.#shown, 0, 0, width, height);
  }
}
