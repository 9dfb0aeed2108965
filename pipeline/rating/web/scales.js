// What is answered: four scales, or which of two. One is active: digits are for it.

const radio = (name, value, text, title) => {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name, value });
  const shown = document.createElement("span");
  shown.textContent = text;
  if (title) label.title = title;
  label.append(input, shown);
  return label;
};

class Form {
  /**
   * @param place fieldset.
   * @param changed is called after every answer.
   */
  constructor(place, changed) {
    this.place = place;
    place.addEventListener("change", (event) => {
      this.activate(this.names.indexOf(event.target.name) + 1);
      changed();
    });
  }

  get chosen() {
    return this.names.map((name) => this.place.querySelector(`input[name="${name}"]:checked`)?.value);
  }

  get whole() {
    return this.chosen.every((value) => value !== undefined);
  }

  /** What a digit stands for; false where it stands for nothing. */
  press(key) {
    const value = this.keys[key];
    if (value === undefined) return false;
    const at = Math.min(this.active, this.names.length - 1);
    const input = this.place.querySelector(`input[name="${this.names[at]}"][value="${value}"]`);
    input.checked = true;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  }

  clear() {
    for (const input of this.place.querySelectorAll("input")) input.checked = false;
    this.activate(0);
  }

  activate(at) {
    this.active = Math.max(0, Math.min(at, this.names.length));
    [...this.place.children].forEach((child, n) => child.classList.toggle("active", n === this.active));
  }

  move(by) {
    this.activate(Math.min(this.active, this.names.length - 1) + by);
  }
}

/** Whole numbers on criteria; "" = cannot tell. */
export class Scales extends Form {
  constructor(place, criteria, changed) {
    super(place, changed);
    this.names = Object.keys(criteria);
    this.keys = { 0: "", 1: "1", 2: "2", 3: "3", 4: "4", 5: "5" };
    place.replaceChildren(...Object.entries(criteria).map(([name, said]) => this.scale(name, said)));
    this.clear();
  }

  scale(name, { meaning, low, high }) {
    const scale = document.createElement("div");
    scale.className = "scale";
    scale.setAttribute("role", "radiogroup");
    scale.setAttribute("aria-label", name);
    const title = document.createElement("h2");
    title.textContent = name;
    const text = document.createElement("p");
    text.textContent = meaning;
    const steps = document.createElement("div");
    steps.className = "steps";
    const ends = ["low", "high"].map((end) => {
      const shown = document.createElement("span");
      shown.className = `end ${end}`;
      shown.textContent = { low, high }[end];
      return shown;
    });
    const grades = ["1", "2", "3", "4", "5"].map((grade) => radio(name, grade, grade));
    steps.append(...grades, ...ends);
    const unknown = radio(name, "", "cannot tell", "0");
    unknown.className = "unknown";
    scale.append(title, unknown, text, steps);
    return scale;
  }

  get answer() {
    const grades = this.chosen.map((value) => (value === "" ? null : Number(value)));
    return Object.fromEntries(this.names.map((name, n) => [name, grades[n]]));
  }
}

/** Which of two listens better. */
export class Sides extends Form {
  constructor(place, changed) {
    super(place, changed);
    this.names = ["preferred"];
    this.keys = { 1: "first", 2: "tie", 3: "second", ArrowLeft: "first", ArrowDown: "tie", ArrowRight: "second" };
    const sides = document.createElement("div");
    sides.className = "sides";
    sides.setAttribute("role", "radiogroup");
    sides.append(
      radio("preferred", "first", "A", "1"),
      radio("preferred", "tie", "No difference", "2"),
      radio("preferred", "second", "B", "3"),
    );
    place.replaceChildren(sides);
    this.clear();
  }

  get answer() {
    return { preferred: this.chosen[0] };
  }
}
