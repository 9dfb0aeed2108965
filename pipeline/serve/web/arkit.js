// Live Link Face's 61 columns, in the order of rapport.policies.head.livelink.CHANNELS.

const WEIGHTS = `
  EyeBlinkLeft EyeLookDownLeft EyeLookInLeft EyeLookOutLeft EyeLookUpLeft EyeSquintLeft EyeWideLeft
  EyeBlinkRight EyeLookDownRight EyeLookInRight EyeLookOutRight EyeLookUpRight EyeSquintRight
  EyeWideRight JawForward JawRight JawLeft JawOpen MouthClose MouthFunnel MouthPucker MouthRight
  MouthLeft MouthSmileLeft MouthSmileRight MouthFrownLeft MouthFrownRight MouthDimpleLeft
  MouthDimpleRight MouthStretchLeft MouthStretchRight MouthRollLower MouthRollUpper
  MouthShrugLower MouthShrugUpper MouthPressLeft MouthPressRight MouthLowerDownLeft
  MouthLowerDownRight MouthUpperUpLeft MouthUpperUpRight BrowDownLeft BrowDownRight BrowInnerUp
  BrowOuterUpLeft BrowOuterUpRight CheekPuff CheekSquintLeft CheekSquintRight NoseSneerLeft
  NoseSneerRight TongueOut`;
const ANGLES = `
  HeadYaw HeadPitch HeadRoll LeftEyeYaw LeftEyePitch LeftEyeRoll RightEyeYaw RightEyePitch
  RightEyeRoll`;

export const CHANNELS = `${WEIGHTS} ${ANGLES}`.trim().split(/\s+/);

/** ARKit's own name of a column: jawOpen of JawOpen. */
export function shapeOf(channel) {
  return channel[0].toLowerCase() + channel.slice(1);
}
