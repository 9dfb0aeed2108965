// Noise of a latent: a function of seed and number, so that a session may be told again.
//
// It is not the noise that Python draws for the same seed: that seed gives another listener here,
// who is as likely.

/** N(0, I) of `dim` numbers. */
export function noise(seed, latent, dim) {
  const key = mixed(mixed(seed) ^ latent);
  const share = (n) => (mixed(key ^ n) + 0.5) / 2 ** 32; // in (0, 1)
  const values = new Float32Array(dim);
  for (let n = 0; n < dim; n += 1) {
    // Box and Muller, 1958.
    const radius = Math.sqrt(-2 * Math.log(share(2 * n)));
    values[n] = radius * Math.cos(2 * Math.PI * share(2 * n + 1));
  }
  return values;
}

/** A number of 32 bits, each of which depends on each of x (the end of Appleby's MurmurHash3). */
function mixed(x) {
  let h = (x + 0x9e3779b9) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
