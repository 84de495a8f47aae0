//! Weights under the names that people save them: variants, and names with a beginning in common.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use nn::aesthetic::AestheticHead;
use nn::clip::{ClipConfig, ClipLayout, ClipModel, ClipParts, ClipSource};
use nn::device::Precision;
use nn::distilbert::{DistilBert, DistilBertConfig};
use nn::pipeline::PipelineFiles;
use nn::text::{TextEncoder, TextEncoderConfig};
use nn::unet::{self, UNet, UNetConfig};
use nn::vae::{Vae, VaeConfig};
use nn::weights::{Weights, find_file, write_safetensors};
use tch::{Device, Kind, Tensor};

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The weights of a file under other names.
fn renamed(file: &Path, rename: impl Fn(&str) -> String) -> Weights {
    let weights = Weights::open(file).unwrap();
    let tensors: Vec<(String, Tensor)> =
        weights.names().map(|name| (rename(name), weights.tensor(name).unwrap())).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    write_safetensors(&path, &tensors).unwrap();
    Weights::open(path).unwrap()
}

/// Loads a network of a fixture from weights with another beginning of their names.
type Load = fn(&Path, &Weights) -> Result<(), nn::ModelError>;

#[test]
fn a_common_beginning_of_all_names_is_taken_off() {
    const CPU: (Device, Precision) = (Device::Cpu, Precision::F32);
    let cases: [(&str, &str, Load); 8] = [
        ("unet/sd21", "diffusion_pytorch_model.safetensors", |folder, weights| {
            let config = UNetConfig::read(&folder.join("config.json"))?;
            UNet::load(&config, weights, CPU.0, CPU.1)?;
            UNet::load_reference(&config, weights, CPU.0, CPU.1)?;
            let trained = UNet::load_for_training(&config, weights, CPU.0, CPU.1)?;
            // What is saved has the names of diffusers.
            assert!(trained.parameters().iter().any(|(name, _)| name == "conv_in.weight"));
            Ok(())
        }),
        ("diffusion/vae", "diffusion_pytorch_model.safetensors", |folder, weights| {
            let config = VaeConfig::read(&folder.join("config.json"))?;
            Vae::load(&config, weights, CPU.0, CPU.1).map(drop)
        }),
        ("diffusion/vae_former", "diffusion_pytorch_model.safetensors", |folder, weights| {
            let config = VaeConfig::read(&folder.join("config.json"))?;
            Vae::load(&config, weights, CPU.0, CPU.1).map(drop)
        }),
        ("diffusion/text_projection", "model.safetensors", |folder, weights| {
            let config = TextEncoderConfig::read(&folder.join("config.json"))?;
            TextEncoder::load(&config, weights, CPU.0, CPU.1).map(drop)
        }),
        ("transformers", "model.safetensors", |folder, weights| {
            let layout = ClipLayout::Transformers;
            let config = ClipConfig::read(&folder.join("config.json"), layout)?;
            ClipModel::load(
                ClipSource { config: &config, layout, weights },
                ClipParts::BOTH,
                CPU.0,
                CPU.1,
            )?;
            ClipModel::load(
                ClipSource { config: &config, layout, weights },
                ClipParts::VISION,
                CPU.0,
                CPU.1,
            )
            .map(drop)
        }),
        ("open_clip_bin", "open_clip_pytorch_model.bin", |folder, weights| {
            let layout = ClipLayout::OpenClip;
            let config = ClipConfig::read(&folder.join("open_clip_config.json"), layout)?;
            ClipModel::load(
                ClipSource { config: &config, layout, weights },
                ClipParts::BOTH,
                CPU.0,
                CPU.1,
            )?;
            ClipModel::load(
                ClipSource { config: &config, layout, weights },
                ClipParts::TEXT,
                CPU.0,
                CPU.1,
            )
            .map(drop)
        }),
        ("distilbert", "model.safetensors", |folder, weights| {
            let config = DistilBertConfig::read(&folder.join("config.json"))?;
            DistilBert::load(&config, weights, CPU.0, CPU.1).map(drop)
        }),
        ("aesthetic", "head.pth", |_, weights| Ok(AestheticHead::load(weights, CPU.0).map(drop)?)),
    ];
    for (name, file, load) in cases {
        let folder = fixtures(name);
        for before in ["", "_orig_mod.", "module.", "unet.", "model.", "module._orig_mod."] {
            let weights = renamed(&folder.join(file), |name| format!("{before}{name}"));
            let loaded = load(&folder, &weights);
            assert!(loaded.is_ok(), "{name} {before:?}: {:?}", loaded.err());
        }
        // Only some names with it: which they are is said.
        let weights = renamed(&folder.join(file), |name| match name.contains("bias") {
            true => name.to_owned(),
            false => format!("part.{name}"),
        });
        let error = load(&folder, &weights).unwrap_err().to_string();
        assert!(error.contains("some names begin with part."), "{name}: {error}");
    }
}

#[test]
fn the_number_of_averaged_networks_is_no_weight() {
    let folder = fixtures("unet/sd21");
    let weights = Weights::open(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    let mut tensors: Vec<(String, Tensor)> = weights
        .names()
        .map(|name| (format!("module.{name}"), weights.tensor(name).unwrap()))
        .collect();
    tensors.push(("n_averaged".to_owned(), Tensor::ones([1], (Kind::Int64, Device::Cpu))));
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("averaged.safetensors");
    write_safetensors(&file, &tensors).unwrap();
    let config = UNetConfig::read(&folder.join("config.json")).unwrap();
    let weights = Weights::open(&file).unwrap();
    UNet::load(&config, &weights, Device::Cpu, Precision::F32).unwrap();
}

#[test]
fn the_first_aesthetic_head_is_named() {
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("sa_0_4_vit_l_14_linear.safetensors");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let tensors = [("weight".to_owned(), zeros(&[1, 768])), ("bias".to_owned(), zeros(&[1]))];
    write_safetensors(&file, &tensors).unwrap();
    let error = AestheticHead::load(&Weights::open(&file).unwrap(), Device::Cpu).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("first aesthetic head") && error.contains("768"), "{error}");
}

/// A copy of the small pipeline whose UNet lies under these names.
fn pipeline(names: &[&str]) -> tempfile::TempDir {
    let source = fixtures("diffusion/sd");
    let copy = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(&source).unwrap() {
        let part = entry.unwrap().path();
        let target = copy.path().join(part.file_name().unwrap());
        if part.is_dir() {
            fs_err::create_dir(&target).unwrap();
            for file in fs_err::read_dir(&part).unwrap() {
                let file = file.unwrap().path();
                fs_err::copy(&file, target.join(file.file_name().unwrap())).unwrap();
            }
        } else {
            fs_err::copy(&part, &target).unwrap();
        }
    }
    let unet = copy.path().join("unet");
    let usual = unet.join("diffusion_pytorch_model.safetensors");
    for name in names {
        fs_err::copy(&usual, unet.join(name)).unwrap();
    }
    fs_err::remove_file(usual).unwrap();
    copy
}

#[test]
fn the_only_variant_is_read_and_several_are_named() {
    let open = |names: &[&str]| {
        let copy = pipeline(names);
        PipelineFiles::open(copy.path(), None)
            .map(|files| files.unet.weights.file_name().unwrap().to_string_lossy().into_owned())
    };
    for variant in ["bf16", "non_ema", "fp32", "my-variant"] {
        let name = format!("diffusion_pytorch_model.{variant}.safetensors");
        assert_eq!(open(&[&name]).unwrap(), name);
        let pickle = format!("diffusion_pytorch_model.{variant}.bin");
        assert_eq!(open(&[&pickle]).unwrap(), pickle);
        // The better of two formats; shards by their index.
        assert_eq!(open(&[&pickle, &name]).unwrap(), name);
        let index = format!("diffusion_pytorch_model.safetensors.index.{variant}.json");
        let shard = format!("diffusion_pytorch_model.{variant}-00001-of-00001.safetensors");
        assert_eq!(open(&[&index, &shard]).unwrap(), index);
    }
    // A usual name comes first.
    let (fp16, non_ema) =
        ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors");
    assert_eq!(open(&[non_ema, fp16]).unwrap(), fp16);
    let bf16 = "diffusion_pytorch_model.bf16.safetensors";
    let error = open(&[non_ema, bf16]).unwrap_err().to_string();
    assert!(error.contains(non_ema) && error.contains(bf16), "{error}");
    // What is no variant is named too.
    let error = open(&["unet.safetensors"]).unwrap_err().to_string();
    assert!(error.contains("unet.safetensors"), "{error}");

    let empty = tempfile::tempdir().unwrap();
    assert_eq!(find_file(empty.path(), unet::WEIGHT_FILES).unwrap(), None);
    fs_err::write(empty.path().join("tf_model.h5"), b"x").unwrap();
    let error = Weights::open_folder(empty.path(), unet::WEIGHT_FILES).unwrap_err().to_string();
    assert!(error.contains("it holds tf_model.h5"), "{error}");
}

#[test]
fn texts_in_place_of_a_file_are_named() {
    for (text, says) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "git-lfs pointer"),
        ("<!DOCTYPE html>\n<html></html>", "an HTML page"),
        ("{\"error\": \"Repository not found\"}", "JSON"),
        ("Entry not found", "Entry not found"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for name in ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"] {
            let file = folder.path().join(name);
            fs_err::write(&file, text).unwrap();
            let error = Weights::open(&file).unwrap_err().to_string();
            let expected = if name.ends_with("json") && says == "JSON" { "shards" } else { says };
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
        let config = folder.path().join("config.json");
        fs_err::write(&config, text).unwrap();
        let error = VaeConfig::read(&config);
        if says != "JSON" {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("config.json"), "{error}");
        }
    }
}
