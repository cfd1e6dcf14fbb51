"""The doctor finds this machine well, and says what is wrong with another."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from huggingface_hub import constants
from typer.testing import CliRunner

from analysis import doctor as doctors
from analysis import self_check
from analysis.cli import app
from analysis.doctor import as_json, doctor
from analysis.self_check import Unwell, check_maps, check_overhead, check_parity, check_plain, check_syncs
from regulate import METHODS, Method, generate
from regulate import regulator as regulators
from regulate.kernels import gaussian_kernels
from regulate.objective import optimum
from tracer.models import known_models
from tracer.tap import Tap

CPU = torch.device("cpu")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"
OF_A_MODEL = ["attention of the model", "plain is stock diffusers", "maps add up to one", "waits for the device",
              "overhead of regulation"]  # fmt: skip


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def failed(report) -> dict[str, str]:
    return {check.name: check.detail for check in report.failed}


def test_the_command_of_the_page_finds_this_machine_well_and_writes_it_down(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = re.search(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1].splitlines()
    answer = run(*shlex.split(line)[2:])
    assert answer.exit_code == 0, answer.output
    written = json.loads(Path("doctor.json").read_text())
    assert (written["passed"], written["model"], written["device"], written["dtype"]) == (
        True,
        "emoji",
        "cpu",
        "float32",
    )
    checks = {check["name"]: check for check in written["checks"]}
    assert set(OF_A_MODEL) < set(checks)
    assert {check["status"] for check in checks.values()} == {"passed", "note"}
    assert all(check["detail"] and "\n" not in check["detail"] for check in checks.values())
    assert all(re.search(rf"^\W*{name} +{check['status']} ", answer.output, re.M) for name, check in checks.items())
    assert f"torch {torch.__version__}" in checks["versions"]["detail"]
    assert "4 steps, all equal" in checks["plain is stock diffusers"]["detail"]
    assert checks["waits for the device"]["detail"].startswith("0 in ")
    assert "; 4 passes in both" in checks["overhead of regulation"]["detail"]
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_attention_that_bypasses_the_seam_fails_with_its_reason_and_the_other_checks_still_run(tiny_pipe):
    processors = tiny_pipe.unet.attn_processors
    tiny_pipe.unet.set_attn_processor(AttnProcessor())
    try:
        report = doctor(tiny_pipe, steps=4)
    finally:
        tiny_pipe.unet.set_attn_processor(processors)
    assert "AttnProcessor (backend None), which bypasses" in failed(report)["attention of the model"]
    assert list(failed(report)) == [name for name in OF_A_MODEL if name != "plain is stock diffusers"]
    assert all("checked_modules" in check.traceback for check in report.failed)
    assert json.loads(as_json(report))["passed"] is False


def test_without_its_model_the_command_fails_but_checks_the_rest_and_says_so(tmp_path):
    answer = run("--model", str(tmp_path), "--json", str(tmp_path / "report.json"))
    assert answer.exit_code == 1
    checks = {c["name"]: c for c in json.loads((tmp_path / "report.json").read_text())["checks"]}
    assert [name for name, check in checks.items() if check["status"] == "failed"] == ["model"]
    assert "no model_index.json" in checks["model"]["detail"]
    assert all(checks[name]["detail"] == "not run, there is no model" for name in OF_A_MODEL)
    assert checks["solver against float64"]["status"] == "passed"


def test_a_model_of_joint_attention_is_traced_and_not_regulated(clip_tokenizer, sd2_tokenizer):
    report = doctor(families.sd3(clip_tokenizer, sd2_tokenizer, families.t5_tokenizer()), steps=4)
    checks = {check.name: check for check in report.checks}
    assert failed(report) == {}
    assert [checks[name].status for name in OF_A_MODEL] == ["passed", "note", "passed", "note", "note"]
    assert checks["overhead of regulation"].detail == "not run, joint attention can be traced but not regulated"


def test_a_full_disk_and_a_card_that_is_not_there_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = doctor(tmp_path, "cuda", room=10**18)
    found = failed(report)
    assert "GB free, 1000000000.00 GB are needed" in found["disk of the working folder"]
    assert "GB are needed" in found["disk of the hub cache"]
    assert torch.__version__ in found["device"]
    assert not {"disk of the working folder", "disk of the hub cache"} & set(failed(doctor(tmp_path, room=1)))


@pytest.mark.parametrize(
    "wrong", [{"steps": 3}, {"device": "gpu7"}, {"out": Path("no/such/folder/x.json")}, {"out": Path()}]
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(wrong):
    with pytest.raises(ValueError, match="must be"):
        doctor("emoji", **wrong)


def test_a_report_that_cannot_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    out.write_text("former")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        doctor(tmp_path, out=out)
    assert out.read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_known_model_is_cached_whole_in_part_or_not(tmp_path, tiny_model, monkeypatch):
    known = known_models()["sd14"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "sd14 not cached" in doctors._known()
    folder = tmp_path / f"models--{known.hub_id.replace('/', '--')}" / "snapshots" / known.revision
    shutil.copytree(tiny_model, folder)
    assert "sd14 cached, sd15 not cached" in doctors._known()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(folder / "scheduler")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert re.search(
        r"sd14 cached in part, without (scheduler and unet|unet and scheduler) and tokenizer,", doctors._known()
    )


def test_a_solver_that_is_off_on_the_device_is_found(monkeypatch):
    factors = iter((1.001, 1.0))  # of the device, of the CPU
    monkeypatch.setattr(self_check, "gaussian_kernels", lambda *size: next(factors) * gaussian_kernels(*size))
    with pytest.raises(Unwell, match=r"kept loss .* off by .*precision 'highest'"):
        check_parity(CPU)


def test_a_device_that_gives_no_numbers_is_found(monkeypatch):
    factors = iter((torch.nan, 1.0))
    monkeypatch.setattr(self_check, "gaussian_kernels", lambda *size: next(factors) * gaussian_kernels(*size))
    with pytest.raises(Unwell, match="kept loss nan"):
        check_parity(CPU)


def test_an_empty_method_that_changes_the_image_is_found(tiny_pipe, monkeypatch):
    regulation = METHODS["regulation"]
    monkeypatch.setattr(
        Method, "interventions", lambda self, *given: type(regulation).interventions(regulation, *given)
    )
    with pytest.raises(Unwell, match=r"^\d+ of 12288 values differ, by up to [\d.e-]+$"):
        check_plain(tiny_pipe, 4)


def test_an_image_without_numbers_is_found(tiny_pipe):
    bias = tiny_pipe.vae.decoder.conv_out.bias
    before = bias.detach().clone()
    try:
        bias.data.fill_(torch.nan)
        with pytest.raises(Unwell, match="makes no image: values from nan"):
            check_plain(tiny_pipe, 4)
    finally:
        bias.data.copy_(before)


def test_maps_that_do_not_add_up_are_found(tiny_pipe, monkeypatch):
    honest = Tap.maps
    monkeypatch.setattr(Tap, "maps", lambda self, rows=slice(None), select=None: 1.01 * honest(self, rows, select))
    with pytest.raises(Unwell, match=r"off from one by up to 1\.0e-02"):
        check_maps(tiny_pipe, 4)


def test_an_edit_that_reads_a_number_is_found(tiny_pipe, monkeypatch):
    def waiting(scores, *given):
        scores.sum().item()
        return optimum(scores, *given)

    edits = re.fullmatch(r"0 in (\d+) edits", check_syncs(tiny_pipe, 4))[1]
    monkeypatch.setattr(regulators, "optimum", waiting)
    with pytest.raises(
        Unwell, match=rf"^{edits} in {edits} edits: aten._local_scalar_dense.default \({edits} times\)$"
    ):
        check_syncs(tiny_pipe, 4)


def test_more_passes_of_the_network_are_found(tiny_pipe, monkeypatch):
    def longer(pipe, request, method):
        return generate(pipe, replace(request, steps=request.steps + (method != Method())), method)

    monkeypatch.setattr(self_check, "generate", longer)
    monkeypatch.setattr(self_check, "REPEATS", 1)
    with pytest.raises(Unwell, match="regulation takes 5 passes of the network, the plain pipeline 4"):
        check_overhead(tiny_pipe, 4, CPU)
