//! Folders of diffusers as single files and back: the same tensors, and what is refused. The names
//! themselves are checked against diffusers' converters in `src/single_file/names.rs`.

#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::{Path, PathBuf};

use nn::pipeline::PipelineFiles;
use nn::single_file::{SingleFamily, check, is_packed, pack, unpack, unpacked};
use nn::weights::{Weights, write_safetensors};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion").join(name)
}

fn packed(name: &str, to: &Path, kind: Option<Kind>) {
    let files = PipelineFiles::open(&fixture(name), None).unwrap();
    pack(&files, to, kind, &|| Ok(())).unwrap();
}

/// The tensors of a part. transformers 5 leaves out the first part of a text encoder's names.
fn tensors(folder: &Path, part: &str) -> Vec<(String, Tensor)> {
    let file = match part.starts_with("text_encoder") {
        true => "model.safetensors",
        false => "diffusion_pytorch_model.safetensors",
    };
    let weights = Weights::open(folder.join(part).join(file)).unwrap();
    let whole = |name: &str| match part.starts_with("text_encoder") {
        true if !name.starts_with("text_") => format!("text_model.{name}"),
        _ => name.to_owned(),
    };
    let named = weights.names().map(|name| (whole(name), weights.tensor(name).unwrap()));
    let mut named: Vec<(String, Tensor)> = named.collect();
    named.sort_by(|(one, _), (other, _)| one.cmp(other));
    named
}

fn json_of(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_folder_comes_back_from_its_single_file_tensor_by_tensor() {
    for (name, family, parts) in [
        ("sd", SingleFamily::StableDiffusion1, &["unet", "vae", "text_encoder"][..]),
        (
            "sdxl",
            SingleFamily::StableDiffusionXl,
            &["unet", "vae", "text_encoder", "text_encoder_2"],
        ),
    ] {
        let place = tempfile::tempdir().unwrap();
        let (file, folder) = (place.path().join("a.safetensors"), place.path().join("a"));
        packed(name, &file, None);
        assert!(is_packed(&file));
        assert_eq!(check(&file).unwrap(), family);
        unpack(&file, &folder, &|| Ok(())).unwrap();
        for part in parts {
            assert_eq!(tensors(&folder, part), tensors(&fixture(name), part), "{name}/{part}");
        }
        // A whole pipeline, whose blocks are those of the original.
        let files = PipelineFiles::open(&folder, None).unwrap();
        files.schedule().unwrap();
        let [found, expected] =
            [&folder, &fixture(name)].map(|folder| json_of(folder.join("unet/config.json")));
        for option in [
            "block_out_channels",
            "down_block_types",
            "up_block_types",
            "layers_per_block",
            "cross_attention_dim",
            "in_channels",
            "out_channels",
            "use_linear_projection",
            "addition_embed_type",
            "projection_class_embeddings_input_dim",
        ] {
            let of = |config: &Value| config.get(option).cloned().filter(|one| !one.is_null());
            assert_eq!(of(&found), of(&expected), "{name}: {option}");
        }
        let vae = |folder: &Path| json_of(folder.join("vae/config.json"));
        for option in ["block_out_channels", "layers_per_block", "latent_channels"] {
            assert_eq!(vae(&folder)[option], vae(&fixture(name))[option], "{name}: {option}");
        }
        let tokens = json_of(folder.join("tokenizer/vocab.json"));
        assert_eq!(tokens.as_object().unwrap().len(), 49_408);
        assert_eq!((&tokens["!"], &tokens["<|endoftext|>"]), (&json!(0), &json!(49_407)));
        // The same bytes from the folder that came back.
        let again = place.path().join("b.safetensors");
        let files = PipelineFiles::open(&folder, None).unwrap();
        pack(&files, &again, None, &|| Ok(())).unwrap();
        assert!(std::fs::read(&again).unwrap() == std::fs::read(&file).unwrap());
    }
}

#[test]
fn numbers_are_written_in_another_dtype_if_asked() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("half.safetensors");
    packed("sd", &file, Some(Kind::Half));
    let weights = Weights::open(&file).unwrap();
    assert!(weights.names().all(|name| weights.kind(name) == Some(Kind::Half)));
}

#[test]
fn what_no_published_family_is_gets_refused() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("a.safetensors");
    packed("sd", &file, None);
    let whole = Weights::open(&file).unwrap();
    let tensors = |keep: &dyn Fn(&str) -> bool| -> Vec<(String, Tensor)> {
        let names = whole.names().filter(|name| keep(name));
        names.map(|name| (name.to_owned(), whole.tensor(name).unwrap())).collect()
    };
    let refused = |tensors: &[(String, Tensor)], says: &str| {
        let other = place.path().join("other.safetensors");
        write_safetensors(&other, tensors).unwrap();
        let folder = place.path().join("folder");
        let error = check(&other).and_then(|_| unpack(&other, &folder, &|| Ok(())));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("other.safetensors"), "{says}: {error}");
        assert!(!folder.join("model_index.json").exists());
    };
    let is_unet = |name: &str| name.starts_with("model.diffusion_model.");
    refused(&tensors(&|name| !is_unet(name)), "found no model.diffusion_model");
    refused(&tensors(&|name| !name.starts_with("first_stage")), "no autoencoder");
    refused(&tensors(&|name| !name.starts_with("cond_stage")), "text encoders");
    let mut inpainting = tensors(&|name| !name.ends_with("input_blocks.0.0.weight"));
    let nine = Tensor::zeros([4, 9, 3, 3], tch::kind::FLOAT_CPU);
    inpainting.push(("model.diffusion_model.input_blocks.0.0.weight".to_owned(), nine));
    refused(&inpainting, "reads 9 channels");
    let mut foreign = tensors(&|_| true);
    let one = Tensor::zeros([1], tch::kind::FLOAT_CPU);
    foreign.push(("model.diffusion_model.motion.0.weight".to_owned(), one));
    refused(&foreign, "motion.0.weight");
}

#[test]
fn a_changed_file_is_unpacked_to_another_folder() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("a.safetensors");
    packed("sd", &file, None);
    let first = unpacked(&file, place.path()).unwrap();
    assert_eq!(unpacked(&file, place.path()).unwrap(), first);
    packed("sd", &file, Some(Kind::Half));
    assert_ne!(unpacked(&file, place.path()).unwrap(), first);
}

/// Stopped between any two tensors, nothing counts as complete, and the next start ends with the
/// same bytes.
#[test]
fn a_stopped_unpacking_is_finished_by_the_next() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("a.safetensors");
    packed("sdxl", &file, None);
    let whole = place.path().join("whole");
    let calls = std::cell::Cell::new(0);
    let counted = || {
        calls.set(calls.get() + 1);
        Ok(())
    };
    unpack(&file, &whole, &counted).unwrap();
    let all = calls.get();
    assert!(all > 400, "{all}");
    let folder = place.path().join("stopped");
    for stop in [1, all / 3, all / 2, all] {
        calls.set(0);
        let stopping = || {
            calls.set(calls.get() + 1);
            if calls.get() == stop { Err(std::io::Error::other("stopped")) } else { Ok(()) }
        };
        assert!(unpack(&file, &folder, &stopping).is_err());
        assert!(!folder.join("model_index.json").exists(), "{stop} of {all}");
    }
    unpack(&file, &folder, &|| Ok(())).unwrap();
    for name in [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/merges.txt",
    ] {
        let [one, other] =
            [&whole, &folder].map(|folder| std::fs::read(folder.join(name)).unwrap());
        assert!(one == other, "{name}");
    }
}
