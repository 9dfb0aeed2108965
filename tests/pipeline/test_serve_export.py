"""An exported listener does in a visitor's browser what it does in Python, and tells nobody."""

import base64
import csv
import functools
import json
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest

from rapport import load_policy
from rapport.pipeline.run import main
from rapport.pipeline.steps import exporting
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow import export
from rapport.policies.flow.conditions import LEADS
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.flow.encoders import LogMel
from rapport.policies.flow.live import LiveFlow
from rapport.policies.flow.sampling import latent_noise
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.head.arkit import ArkitRig
from rapport.policies.head.asset import load_head
from rapport.policies.head.livelink import COLUMNS, write_livelink
from rapport.policies.live import Chunk
from rapport.policies.motion import Layout, Motion
from tests.chromium import CHROMIUM, Chromium
from tests.gaussian import Gaussian
from tests.policies.test_flow_live import R, chunks_of, small_policy, talking
from tests.recordings import write_wav

pytest.importorskip("onnxscript", reason="needs the extra export")
EVALUATIONS = 4
SEED = 5
CHUNK = R * AUDIO_RATE // 25
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt-get install chromium) or Chrome on PATH"
)
HAS_RUNTIME = all((exporting.RUNTIME / name).is_file() for name in exporting.RUNTIME_FILES)
needs_runtime = pytest.mark.skipif(not HAS_RUNTIME, reason="needs onnxruntime-web: make web")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy of the built-in head, random weights."""
    texts = tmp_path_factory.mktemp("texts")
    folder = tmp_path_factory.mktemp("policies") / "flow"
    small_policy(texts, text_dim=32, groups=PAPER_GROUPS).save(folder)
    return folder


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """Files of onnxruntime-web's names, where its own are not there."""
    if HAS_RUNTIME:
        return exporting.RUNTIME
    folder = tmp_path_factory.mktemp("runtime")
    for name in exporting.RUNTIME_FILES:
        (folder / name).write_text("")
    return folder


@pytest.fixture(scope="module")
def site(folder, runtime, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported")
    keys = [f"policy={folder}", f"out={place / 'site'}", f"runtime={runtime}", "texts=[happy]"]
    quiet = ["tracking.system_metrics=false", "--run-dir", str(place / "run")]
    assert main(["export", *keys, f"evaluations={EVALUATIONS}", *quiet]) == 0
    return place / "site"


@pytest.fixture(scope="module")
def live(folder):
    """The same listener in Python."""
    return LiveFlow(load_policy(folder).with_sampler(evaluations=EVALUATIONS))


class Host(SimpleHTTPRequestHandler):
    """Sends the page's policy with every file: a worker obeys that of its file, not its page's."""

    def end_headers(self):
        self.send_header("Content-Security-Policy", exporting.POLICY)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host(site):
    """The address of the folder, by a host of files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Host, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    voice = write_wav(tmp_path_factory.mktemp("voice") / "voice.wav", said(4 * AUDIO_RATE))
    with Chromium(tmp_path_factory.mktemp("profile"), voice) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, host):
    return browser.open(host)


def said(samples):
    """Noise that comes and goes, int16."""
    rng = np.random.default_rng(0)
    loud = 3000 * (1 + np.sin(np.arange(samples) / 4000))
    return (loud * rng.normal(size=samples)).clip(-32768, 32767).astype(np.int16)


def text_of(array):
    return json.dumps(base64.b64encode(np.ascontiguousarray(array).tobytes()).decode())


def array_in(page, kind, text):
    """An expression: a typed array of the page."""
    return f"new {kind}(Uint8Array.from(atob({text_of(text)}), (c) => c.charCodeAt(0)).buffer)"


def test_a_minute_of_onnx_is_a_minute_of_pytorch(site, live):
    """188 latents of two people who talk and move, state fed back; the span is 3 latents."""
    clip = talking(live.policy.layout, latents=188)
    state = live.start(SEED)
    listener = export.OnnxListener(site / exporting.STEP, live)
    tensors = listener.start(state)
    for number, chunk in enumerate(chunks_of(clip)):
        given = live._given([state], [live._listen(state, chunk)[1]])
        frames, tensors = listener.step(tensors, given)
        [motion], [state] = live.step([state], [chunk])
        skipped = R // 2 if number == 0 else 0
        np.testing.assert_allclose(frames[0, skipped:], motion.values, atol=1e-4)
    assert state.number == 188 and np.abs(motion.values).max() > 0.1


@pytest.mark.long
def test_a_voice_that_goes_in_as_it_is_is_exported_too(tmp_path):
    """The paper's AR-Flow has no encoder of voices."""
    live = LiveFlow(small_policy(tmp_path, voice=None).with_sampler(evaluations=2))
    export.write_onnx(live, tmp_path / "step.onnx")
    assert export.difference(tmp_path / "step.onnx", live, steps=12) < 1e-4


def test_files_say_nothing_of_the_machine_that_wrote_them(site):
    for file in (site / exporting.STEP, site / exporting.FACTS):
        assert str(exporting.PAGE.parents[2]).encode() not in file.read_bytes()


@needs_chromium
@pytest.mark.parametrize("fps", [25, 30])
def test_bands_of_sound_are_pythons(page, fps):
    """At 30 frames per second a chunk has 4,266 or 4,267 samples."""
    mel = LogMel()
    sound = said(5 * CHUNK).astype(np.float32) / 32768
    sound[CHUNK : CHUNK + 2000] = 0
    before = sound[:0]
    expected = []
    for first in range(0, 4 * R, R):
        span = slice(*(round(n * AUDIO_RATE / fps) for n in (first, first + R)))
        bands, before = mel.follow(before, sound[span], first, R, fps)
        expected.append(bands.numpy())
    found = page.value(f"""(async () => {{
      const {{ Voice }} = await import("./alone/bands.js");
      const sound = {array_in(page, "Float32Array", sound)};
      const voice = new Voice({AUDIO_RATE}, {fps});
      const firsts = [0, {R}, {2 * R}, {3 * R}];
      return firsts.map((first) => Array.from(voice.follow(
        sound.slice(voice.sampleOf(first), voice.sampleOf(first + {R})), first, {R})));
    }})()""")
    np.testing.assert_allclose(np.reshape(found, (-1, 64)), np.concatenate(expected), atol=1e-4)


@needs_chromium
def test_noise_is_normal_and_a_function_of_seed_and_latent(page):
    found = page.value("""(async () => {
      const { noise } = await import("./alone/noise.js");
      const of = (seed) => Array.from({ length: 500 }, (_, n) => Array.from(noise(seed, n, 64)));
      return [of(0), of(0), of(1)];
    })()""")
    first, again, other = np.array(found)
    np.testing.assert_array_equal(first, again)
    values = np.sort(first.ravel())
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    assert np.abs(values[[800, 16000, 31200]] - [-1.96, 0, 1.96]).max() < 0.06
    for a, b in ((first, other), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


@needs_chromium
def test_weights_of_a_face_are_pythons(page, tmp_path):
    rng = np.random.default_rng(0)
    motion = Motion(rng.normal(size=(40, 67)) * 0.3, Layout(PAPER_GROUPS, 25, "builtin"))
    head = load_head()
    write_livelink(tmp_path / "take.csv", ArkitRig(head).weights(motion))
    with (tmp_path / "take.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS
    expected = np.array([row[2:] for row in rows[1:]], float)
    found = page.value(f"""(async () => {{
      const {{ ArkitRig }} = await import("./alone/rig.js");
      const facts = await (await fetch("listener.json")).json();
      const rig = new ArkitRig(facts.arkit, facts.layout);
      const motion = {array_in(page, "Float32Array", motion.values)};
      return Array.from({{ length: 40 }}, (_, n) =>
        Array.from(rig.columns(motion.subarray(67 * n, 67 * (n + 1)))));
    }})()""")
    np.testing.assert_allclose(found, expected, atol=1e-4)


HEAR = """(async () => {
  const { Session } = await import("./session.js");
  const sound = SOUND;
  const noise = NOISE;
  const frames = [];
  const motions = [];
  return await new Promise((resolve) => {
    let number = 0;
    const say = () => {
      const { chunk_samples: size } = session.info;
      const begin = number * size;
      if (begin < sound.length) session.say(number++, sound.slice(begin, begin + size));
    };
    const given = (_, n, dim) => noise.slice(n * dim, (n + 1) * dim);
    const session = new Session(null, { ...WISHES, noise: given }, {
      begun: (info) => {
        session.endAfter(sound.length / info.chunk_samples);
        setTimeout(say);
      },
      frames: (sample, values) => frames.push([sample, Array.from(values)]),
      motion: (sample, values) => motions.push([sample, Array.from(values)]),
      stats: () => setTimeout(say),
      state: (word, message) => {
        const { info } = session;
        if (session.over) resolve({ word, message, frames, motions, info });
      },
    });
    session.begin();
  });
})()"""


@needs_chromium
@needs_runtime
@pytest.mark.parametrize("lead", LEADS)
def test_a_browser_does_what_python_does(page, live, lead):
    """The same sound and the same noise; told to be happy."""
    count = 14
    sound = said(count * CHUNK)
    dim = live.policy.flow.config.latent_dim
    noise = np.stack([latent_noise(SEED, 0, n, dim).numpy() for n in range(count + 1)])
    wishes = {"lead": lead, "text": "happy", "seed": SEED}
    hear = HEAR.replace("SOUND", array_in(page, "Int16Array", sound))
    hear = hear.replace("NOISE", array_in(page, "Float32Array", noise))
    found = page.value(hear.replace("WISHES", json.dumps(wishes)))
    assert (found["word"], found["message"]) == ("ended", "")

    heard = [Chunk(audio=chunk / np.float32(32768)) for chunk in sound.reshape(count, CHUNK)]
    state = live.start(SEED, live.policy.told("happy"), lead)
    expected = []
    for chunk in [None, *heard] if lead == 0 else heard:
        [motion], [state] = live.step([state], [chunk])
        expected.append(motion.values)
    expected = np.concatenate(expected)
    values = np.concatenate([np.reshape(values, (-1, 67)) for _, values in found["motions"]])
    np.testing.assert_allclose(values, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1

    # A session says where its frames belong, and how much later they are shown.
    frames = [len(values) // 67 for _, values in found["motions"]]
    places = [sample for sample, _ in found["motions"]]
    assert places == [n * CHUNK // R for n in np.cumsum([0, *frames[:-1]])]
    ahead = live.advance.ahead(lead)
    assert found["info"]["delay_s"] == pytest.approx(((ahead + 1) * R + R // 2) / 25)
    weights = ArkitRig(load_head()).weights(Motion(expected, live.policy.layout))
    shown = np.concatenate([np.reshape(values, (-1, 61)) for _, values in found["frames"]])
    jaw = COLUMNS.index("JawOpen") - 2
    np.testing.assert_allclose(shown[:, jaw], weights.values[:, 17], atol=1e-4)


@needs_chromium
@needs_runtime
def test_the_page_listens_to_a_microphone_and_asks_nobody_else(browser, host):
    page = browser.open(host)
    page.wait_for("!document.getElementById('prompt').hidden")
    assert page.value("document.getElementById('texts').options[0].value") == "happy"
    page.click("#start")
    page.wait_for("rapport.state === 'listening' && rapport.stats.answered > 4")
    first = page.value("Array.from(rapport.weights() ? Object.values(rapport.weights()) : [])")
    page.wait_for("rapport.stats.playout === 'plays'")
    page.wait_for(
        f"JSON.stringify(Object.values(rapport.weights())) !== {json.dumps(json.dumps(first))}"
    )
    page.value("document.getElementById('text').value = 'sad'")
    page.value("document.getElementById('text').onchange()")
    assert "It can be told: happy." in page.value("document.getElementById('says').textContent")
    page.click("#start")
    page.wait_for("rapport.state === 'ended'")
    assert page.complaints == []
    origins = {urlsplit(url).netloc for url in page.urls if not url.startswith(("blob:", "data:"))}
    assert origins == {urlsplit(host).netloc}


TELL = """(async () => {
  const { Session } = await import("./session.js");
  const facts = await (await fetch("listener.json")).json();
  const { Worker } = window;
  const posted = [];
  const states = [];
  let worker;
  window.Worker = class {
    constructor() { worker = this; }
    postMessage(message) { posted.push(message); }
    terminate() {}
  };
  const session = new Session(null, {}, {
    begun() {}, frames() {}, stats() {}, state: (word) => states.push(word),
  });
  await session.begin();
  window.Worker = Worker;
  session.tell("happy");
  worker.onmessage({ data: { facts, next: { number: 0, waits: true } } });
  session.stop();
  session.tell("");
  return { text: posted.at(-1).text, states };
})()"""


@needs_chromium
def test_a_text_is_heeded_that_comes_before_the_listener_and_none_after_the_end(page):
    found = page.value(TELL)
    assert found["text"] == "happy" and found["states"][-1] == "ended"


def refused(capsys, *arguments):
    assert main(["export", *arguments]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("rapport export: ") and "Traceback" not in said
    return said


def test_what_cannot_be_exported_is_refused_before_anything_is_made(
    folder, runtime, tmp_path, monkeypatch, capsys, tiny_checkpoint
):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    clip = talking(Layout(PAPER_GROUPS, 25, "builtin"))
    Gaussian.untrained(clip.listener.layout, [clip], seed=0).save(own)
    hears = small_policy(tmp_path / "texts", text_dim=32, groups=PAPER_GROUPS)
    hears.encoders = EncodersConfig(audio="facebook/wav2vec2-large")
    hears.save(tmp_path / "wav2vec2")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("all of it")
    before = sorted(tmp_path.iterdir())
    at = f"runtime={runtime}"
    assert "of kind vla, and only an AR-Flow" in refused(capsys, f"policy={tiny_checkpoint}", at)
    assert "and only an AR-Flow (flow)" in refused(capsys, f"policy={own}", at)
    assert "hears log-mel bands" in refused(capsys, "policy=wav2vec2", at)
    policy = f"policy={folder}"
    assert "no whole denoise steps" in refused(capsys, policy, at, "evaluations=3")
    assert "a folder of other things" in refused(capsys, policy, at, f"out={full}")
    assert re.search("lacks .*mjs.* the folder dist", refused(capsys, policy, "runtime=full"))
    monkeypatch.setattr(exporting, "RUNTIME", full)
    assert "run `make web`" in refused(capsys, policy)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert "pip install 'rapport-rlhf[export]'" in refused(capsys, policy, at)
    assert sorted(tmp_path.iterdir()) == before
