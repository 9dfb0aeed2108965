/** Why a session does not begin. `final`: trying again is no use. */
export class Refusal extends Error {
  constructor(message, { final = false, waitS = 0 } = {}) {
    super(message);
    this.final = final;
    this.waitS = waitS;
  }
}
