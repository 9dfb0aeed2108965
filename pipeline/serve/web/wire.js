// What goes over a live session's socket, as docs/serve.md has it.

export const SOUND = 1;
export const MOTION = 2;
export const PICTURE = 3;
export const ARKIT = 66;
export const ACT = 67;
export const SEEN = 68;

export const PROTOCOL = "rapport.v1";
export const TICKET = "ticket.";

const VERSION = 1;
const HEADER = 16; // bytes

/** The first sample of a chunk, of which each has `size`; that may be no whole number. */
export function border(number, size) {
  return Math.round(number * size);
}

/** Parts {kind, sample, payload: Uint8Array} as one message. */
export function packed(parts) {
  const size = parts.reduce((sum, part) => sum + HEADER + part.payload.length, 0);
  const message = new Uint8Array(size);
  const view = new DataView(message.buffer);
  let place = 0;
  for (const { kind, sample, payload } of parts) {
    view.setUint8(place, VERSION);
    view.setUint8(place + 1, kind);
    view.setUint32(place + 4, payload.length, true);
    view.setBigUint64(place + 8, BigInt(sample), true);
    message.set(payload, place + HEADER);
    place += HEADER + payload.length;
  }
  return message;
}

/** The parts {kind, flags, sample, payload: ArrayBuffer} of a message (ArrayBuffer). */
export function unpacked(message) {
  const view = new DataView(message);
  const parts = [];
  let place = 0;
  while (place < message.byteLength) {
    if (view.getUint8(place) !== VERSION) {
      throw new Error(`the server speaks version ${view.getUint8(place)}, this page ${VERSION}: reload the page`);
    }
    const begin = place + HEADER;
    const end = begin + view.getUint32(place + 4, true);
    if (end > message.byteLength) throw new Error("an answer ends before its part does");
    parts.push({
      kind: view.getUint8(place + 1),
      flags: view.getUint16(place + 2, true),
      sample: Number(view.getBigUint64(place + 8, true)),
      payload: message.slice(begin, end),
    });
    place = end;
  }
  return parts;
}
