//! Descriptions of paths that are not the expected model: one sentence and a hint.

#![expect(clippy::disallowed_methods, reason = "fixtures need not be durable")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use hub::{Wanted, describe};

/// A safetensors file with one empty tensor of this name.
fn tensors(path: &Path, name: &str) {
    let header =
        format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}}}");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.push(0);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[track_caller]
fn check(path: &Path, wanted: Wanted, expected: &[&str]) {
    let text = describe(path, wanted);
    for part in expected {
        assert!(text.contains(part), "{}: {part:?} is missing: {text}", path.display());
    }
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn single_files_and_lora() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    tensors(&at("v1-5.safetensors"), "model.diffusion_model.input_blocks.0.0.weight");
    let single =
        ["single checkpoint file", "Automatic1111", "from_single_file", "v1-5.safetensors"];
    check(&at("v1-5.safetensors"), Wanted::Pipeline, &single);
    check(&at("v1-5.safetensors"), Wanted::Unet, &single);
    // A pickle in a zip archive; the names of its tensors are visible.
    write(&at("old.ckpt"), "PK\u{3}\u{4} archive/data.pkl model.diffusion_model.out.0.weight");
    check(&at("old.ckpt"), Wanted::Pipeline, &["single checkpoint file", "save_pretrained"]);
    // A folder of such files.
    tensors(&at("models/a.safetensors"), "model.diffusion_model.out.weight");
    write(&at("models/readme.txt"), "x");
    check(&at("models"), Wanted::Pipeline, &["holds single checkpoint files", "a.safetensors"]);

    for (name, tensor) in [
        ("kohya.safetensors", "lora_unet_down_blocks_0.lora_down.weight"),
        ("peft.safetensors", "unet.down_blocks.0.attn1.to_q.lora_A.weight"),
    ] {
        tensors(&at(name), tensor);
        check(&at(name), Wanted::Pipeline, &["LoRA", ",lora=", "train merge", name]);
    }
    tensors(&at("lora/pytorch_lora_weights.safetensors"), "unet.x.lora_A.weight");
    check(&at("lora"), Wanted::Unet, &["LoRA", "train merge"]);
    write(&at("peft/adapter_config.json"), "{}");
    check(&at("peft"), Wanted::Pipeline, &["LoRA"]);
}

#[test]
fn one_file_of_a_folder_leads_to_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let unet = folder.path().join("sd/unet");
    write(&unet.join("config.json"), "{\"_class_name\": \"UNet2DConditionModel\"}");
    write(&folder.path().join("sd/model_index.json"), "{}");
    tensors(&unet.join("diffusion_pytorch_model.safetensors"), "conv_in.weight");
    let shown = unet.display().to_string();
    check(
        &unet.join("diffusion_pytorch_model.safetensors"),
        Wanted::Unet,
        &["one file of a model's folder", &format!("name its folder, {shown}")],
    );
    check(&folder.path().join("sd/model_index.json"), Wanted::Pipeline, &["name the folder"]);
    check(&unet, Wanted::Pipeline, &["is a UNet alone", "unet="]);
    check(folder.path(), Wanted::Pipeline, &["folder around a pipeline", "sd"]);
    write(&folder.path().join("clip/config.json"), "{\"model_type\": \"clip\"}");
    check(&folder.path().join("clip"), Wanted::Pipeline, &["transformers model of the kind clip"]);
    write(&folder.path().join("vae/config.json"), "{\"_class_name\": \"AutoencoderKL\"}");
    check(&folder.path().join("vae"), Wanted::Unet, &["AutoencoderKL", "folder around it"]);
    // Weights that lost their configuration.
    tensors(&folder.path().join("x.safetensors"), "conv_in.weight");
    check(&folder.path().join("x.safetensors"), Wanted::Unet, &["without its config.json"]);
}

#[test]
fn repositories_of_the_cache_lead_to_their_snapshot() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--me--sd");
    for commit in ["aaaa", "bbbb"] {
        write(&repository.join("snapshots").join(commit).join("model_index.json"), "{}");
    }
    write(&repository.join("refs/main"), "aaaa\n");
    check(&repository, Wanted::Pipeline, &["hub's cache", "snapshots/aaaa", "hf://me/sd"]);
    check(cache.path(), Wanted::Model, &["holds many models", "hf://me/sd"]);
    fs::remove_dir_all(repository.join("snapshots")).unwrap();
    fs::create_dir(repository.join("snapshots")).unwrap();
    check(&repository, Wanted::Pipeline, &["empty", "hf://me/sd downloads it"]);
}

#[test]
fn outputs_of_trainings_lead_to_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for step in ["500", "1000", "90"] {
        write(&out.join(format!("checkpoint-{step}/unet/config.json")), "{}");
    }
    for wanted in [Wanted::Unet, Wanted::Pipeline] {
        check(
            &out,
            wanted,
            &["output of a training run with 3 checkpoints", "checkpoint-1000/unet"],
        );
    }
    let run = folder.path().join("run");
    write(&run.join("checkpoints/step-000040/unet/config.json"), "{}");
    check(&run, Wanted::Unet, &["1 checkpoint;", "step-000040/unet"]);
    write(&run.join("pipeline/model_index.json"), "{}");
    check(&run, Wanted::Pipeline, &["training run", "name its result", "run/pipeline"]);
}

#[test]
fn what_does_not_exist_is_recognised_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for (text, expected) in [
        ("runwayml/stable-diffusion-v1-5", "write hf://runwayml/stable-diffusion-v1-5"),
        ("https://huggingface.co/a/b", "write hf://a/b"),
        ("https://civitai.com/models/1", "only hf://owner/name"),
        ("sd15", "hf://owner/name"),
    ] {
        check(Path::new(text), Wanted::Pipeline, &[expected]);
    }
    write(&folder.path().join("sd15/x"), "");
    let absent = folder.path().join("sd16");
    check(&absent, Wanted::Pipeline, &["does not exist", "exists; holds sd15"]);
    check(&folder.path().join("sd15"), Wanted::Pipeline, &["holds x"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    check(&folder.path().join("empty"), Wanted::Model, &["empty folder"]);
    write(
        &folder.path().join("pointer.safetensors"),
        "version https://git-lfs.github.com/spec/v1\n",
    );
    check(
        &folder.path().join("pointer.safetensors"),
        Wanted::Unet,
        &["git-lfs pointer", "git lfs pull"],
    );
    write(&folder.path().join("q.gguf"), "GGUF");
    check(&folder.path().join("q.gguf"), Wanted::Pipeline, &["GGUF"]);
}
