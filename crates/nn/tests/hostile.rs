//! Files made to break or mislead the readers. Each one is an error, never a panic, and takes no
//! more memory than its size justifies.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use nn::weights::{Weights, WeightsError};
use tch::{Kind, Tensor};
use zip::write::{SimpleFileOptions, ZipWriter};

/// A zip of stored entries.
fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in entries {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn open(bytes: &[u8]) -> Result<Weights, WeightsError> {
    let file = tempfile::Builder::new().suffix(".pt").tempfile().unwrap();
    file.as_file().write_all(bytes).unwrap();
    Weights::open(file.path())
}

fn open_pickle(program: &[u8]) -> Result<Weights, WeightsError> {
    open(&zipped(&[("archive/data.pkl", program), ("archive/data/0", &[0; 24])]))
}

fn error_of(program: &[u8]) -> String {
    open_pickle(program).unwrap_err().to_string()
}

/// `{"w": a tensor}` over a storage of six floats, with the given offset, sizes and strides.
fn tensor_pickle(offset: &[u8], sizes: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut program = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    program.extend(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000");
    program.extend(b"X\x06\x00\x00\x00cuda:7K\x06tQ");
    program.extend([offset, sizes, strides].concat());
    program.extend(b"\x89}tRs.");
    program
}

#[test]
fn a_plain_tensor_is_read() {
    let bytes: Vec<u8> =
        [0f32, 1.0, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let program = tensor_pickle(b"K\x01", b"K\x02K\x02\x86", b"K\x01K\x02\x86");
    // Names with dots are only names: nothing is written to a file.
    for prefix in ["archive", "..", "a b"] {
        let zip = zipped(&[
            ("../../etc/evil", b"x"),
            (&format!("{prefix}/data.pkl"), &program),
            (&format!("{prefix}/data/0"), &bytes),
            (&format!("{prefix}/byteorder"), b"little"),
        ]);
        let weights = open(&zip).unwrap();
        let tensor = weights.tensor("w").unwrap();
        assert_eq!((tensor.size(), tensor.stride()), (vec![2, 2], vec![1, 2]));
        assert_eq!(
            Vec::<f32>::try_from(tensor.contiguous().view(-1)).unwrap(),
            [1.0, 3.0, 2.0, 4.0]
        );
    }
}

/// The dict of `tensor_pickle` under a key of another dict.
fn under(key: &str, inner: &[u8]) -> Vec<u8> {
    let mut program = b"\x80\x02}X".to_vec();
    program.extend((key.len() as u32).to_le_bytes());
    program.extend(key.as_bytes());
    program.extend(&inner[2..inner.len() - 1]);
    program.extend(b"s.");
    program
}

#[test]
fn state_dicts_are_found_where_training_programs_put_them() {
    let plain = tensor_pickle(b"K\x00", b"K\x02K\x03\x86", b"K\x03K\x01\x86");
    for key in ["state_dict", "model", "module", "model_state_dict"] {
        let weights = open_pickle(&under(key, &plain)).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["w"], "{key}");
        let weights = open_pickle(&under("state_dict", &under(key, &plain))).unwrap();
        assert_eq!(weights.shape("w"), Some(&[2, 3][..]), "{key}");
    }
    // Under another key the error lists the keys, so that the user sees what the file is.
    let error = error_of(&under("optimizer", &plain));
    assert!(error.contains("its keys are optimizer") && error.contains("\"model\""), "{error}");
}

#[test]
fn code_is_refused_by_name() {
    let calls: [(&[u8], &str); 8] = [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "os.system"),
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "posix.system"),
        (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.", "os.system"),
        (b"\x80\x02ctorch\nload\nX\x01\x00\x00\x001\x85R.", "torch.load"),
        (
            b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01a\x85R.",
            "torch.storage._load_from_bytes",
        ),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
        (b"\x80\x02c\x1b[31mevil\nx\n.", "\\u{1b}[31mevil.x"),
    ];
    for (program, name) in calls {
        let error = open_pickle(program).unwrap_err();
        assert!(matches!(error, WeightsError::RefusedGlobal { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.to_string().contains(".pt"), "{error}");
    }
    // Instructions that make objects of classes, or refer to something outside the file.
    for (program, name) in [
        (&b"\x80\x02(cos\nsystem\no."[..], "os.system"),
        (b"\x80\x02(ios\nsystem\n.", "INST"),
        (b"\x80\x02(NNo.", "OBJ"),
        (b"\x80\x02Pabc\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT"),
        (b"\x80\x04N)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x02\xff.", "0xff"),
    ] {
        assert!(error_of(program).contains(name), "{}", error_of(program));
    }
}

#[test]
fn broken_programs_are_errors() {
    // Nested calls: the result of REDUCE cannot be called again.
    let mut nested = b"\x80\x02".to_vec();
    nested.extend(b"ccollections\nOrderedDict\n)R)R)R)R.");
    assert!(error_of(&nested).contains("not a function"));
    for (program, reason) in [
        (&b""[..], "ends in the middle"),
        (b"\x80", "ends in the middle"),
        (b"\x80\x07.", "protocol"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02N", "ends in the middle"),
        (b"\x80\x02N.", "found another object"),
        (b"\x80\x02}.", "without tensors"),
        (b"\x80\x02}X\xff\xff\xff\xffa", "4294967295 bytes"),
        (b"\x80\x02B\xff\xff\xff\xffa", "4294967295 bytes"),
        (b"\x80\x02cabc", "without an end"),
        (b"\x80\x02h\x05.", "never kept"),
        (b"\x80\x02q\x05.", "empty stack"),
        (b"\x80\x02t.", "mark"),
        (b"\x80\x02N(0.", "empty stack"),
        (b"\x80\x02N(\x85.", "empty stack"),
        (b"\x80\x02(Nu.", "not a dict"),
        (b"\x80\x02}(Nu.", "not a dict"),
        (b"\x80\x02NQ.", "expected a tuple"),
        (b"\x80\x02)Q.", "not described"),
        (b"\x80\x02NNR.", "not a function"),
        (b"\x80\x02K\x01Nb.", "attributes"),
        (b"\x80\x02K\x01Na.", "not a list"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "type of storage"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "not described"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.", "parameter"),
        (b"\x80\x02ctorch\nSize\n)R.", "torch.Size"),
    ] {
        let error = error_of(program);
        assert!(error.contains(reason), "{program:?}: {error}");
    }
}

#[test]
fn depth_and_sharing_cost_nothing() {
    // A million lists, each in the one before; a cycle; a memo that doubles a million times.
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(vec![b']'; 1_000_000]);
    deep.extend(vec![b'a'; 999_999]);
    deep.push(b'.');
    assert!(error_of(&deep).contains("another object"));
    let mut tuples = b"\x80\x02)".to_vec();
    tuples.extend(vec![0x85; 1_000_000]);
    tuples.push(b'.');
    assert!(error_of(&tuples).contains("another object"));
    assert!(error_of(b"\x80\x02]q\x00h\x00a.").contains("another object"));
    let mut doubling = b"\x80\x02]q\x00".to_vec();
    for _ in 0..1_000_000 {
        doubling.extend(b"h\x00h\x00\x86q\x00");
    }
    doubling.push(b'.');
    assert!(error_of(&doubling).contains("another object"));
    // A long tuple of sizes, and a long key, used again and again.
    let mut sizes = b"\x80\x02(".to_vec();
    sizes.extend(b"K\x01".repeat(500_000));
    sizes.extend(b"tq\x00");
    for _ in 0..1000 {
        sizes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
        sizes.extend(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000");
        sizes.extend(b"X\x03\x00\x00\x00cpuK\x06tQK\x00h\x00h\x00\x89}tR");
    }
    sizes.push(b'.');
    assert!(error_of(&sizes).contains("dimensions"), "{}", error_of(&sizes));
    let mut large = b"\x80\x02".to_vec();
    large.extend(vec![b'N'; 9 << 20]);
    assert!(error_of(&large).contains("at most 8 MiB"));
}

#[test]
fn tensors_stay_in_their_storage() {
    let (two_by_three, row_major) = (&b"K\x02K\x03\x86"[..], &b"K\x03K\x01\x86"[..]);
    open_pickle(&tensor_pickle(b"K\x00", two_by_three, row_major)).unwrap();
    for (offset, sizes, strides, reason) in [
        (&b"K\x01"[..], two_by_three, row_major, "storage has 6"),
        (b"K\x00", b"K\x07\x85", b"K\x01\x85", "storage has 6"),
        (b"K\x00", two_by_three, b"K\x04K\x01\x86", "storage has 6"),
        (b"J\xff\xff\xff\xff", two_by_three, row_major, "negative offset"),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", two_by_three, row_major, "storage has 6"),
        (b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85", "impossible"),
        (b"K\x00", b"K\x02\x85", b"J\xff\xff\xff\xff\x85", "impossible"),
        (b"K\x00", b"K\x02\x85", row_major, "impossible"),
        // A terabyte from one number, by a stride of zero.
        (b"K\x00", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"K\x00\x85", "storage has 6"),
        (
            b"K\x00",
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x86",
            b"K\x01K\x01\x86",
            "impossible",
        ),
        (
            b"K\x00",
            b"K\x02K\x02\x86",
            b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x86",
            "storage has 6",
        ),
        (b"K\x00", b"K\x02\x85", b"N", "expected a tuple"),
        (b"K\x00", b"N\x85", b"K\x01\x85", "whole numbers"),
    ] {
        let error = error_of(&tensor_pickle(offset, sizes, strides));
        assert!(error.contains(reason), "{sizes:?} {strides:?}: {error}");
    }
    let program = tensor_pickle(b"K\x00", two_by_three, row_major);
    let without = zipped(&[("archive/data.pkl", &program)]);
    assert!(open(&without).unwrap_err().to_string().contains("not in the zip"));
    let big = zipped(&[
        ("archive/data.pkl", &program),
        ("archive/data/0", &[0; 24]),
        ("archive/byteorder", b"big"),
    ]);
    assert!(open(&big).unwrap_err().to_string().contains("big-endian"));
}

#[test]
fn other_formats_are_named() {
    for (bytes, reason) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "git-lfs pointer"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before PyTorch 1.6"),
        (b"<!doctype html><html>", "an HTML page"),
        (b"hello, world", "text that begins with \"hello, world\""),
        (b"{\"error\": {\"code\": 404}}", "JSON text that begins with"),
        (b"[\n      {\"a\": 1}]", "JSON text that begins with"),
        (&[b'Q'; 300], "base64 text"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
        (b"\x00\x01\x02\x03\xff\xfe\xfd\xfc\xfb", "of an unknown kind"),
        (b"", "empty"),
        (b"PK\x03\x04", "zip"),
    ] {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let script =
        zipped(&[("m/data.pkl", b"\x80\x02N."), ("m/constants.pkl", b""), ("m/code/x.py", b"")]);
    assert!(open(&script).unwrap_err().to_string().contains("TorchScript"));
    let document = zipped(&[("word/document.xml", b"x")]);
    assert!(open(&document).unwrap_err().to_string().contains("without one data.pkl"));
    let folder = tempfile::tempdir().unwrap();
    let error = Weights::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    let error = Weights::open(folder.path().join("no.bin")).unwrap_err().to_string();
    assert!(error.contains("no.bin"), "{error}");
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn safetensors_headers_are_checked() {
    let entry = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = format!(r#"{{"a":{}}}"#, entry("[2]", 0, 8));
    let weights = open(&safetensors(&one, &[0; 8])).unwrap();
    assert_eq!(weights.shape("a"), Some(&[2][..]));

    let mut hostile = vec![
        // The header claims more than exists, and more than is allowed.
        [&200u64.to_le_bytes()[..], b"{}"].concat(),
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        [&(101u64 << 20).to_le_bytes()[..], &vec![b'{'; 102 << 20]].concat(),
        // Too little data, and too much.
        safetensors(&one, &[0; 7]),
        safetensors(&one, &[0; 9]),
        safetensors("{", &[]),
    ];
    for entries in [
        // Overlapping, with a hole, backwards, overflowing; the shape not that of the bytes.
        format!(r#""a":{},"b":{}"#, entry("[2]", 0, 8), entry("[2]", 4, 12)),
        format!(r#""a":{},"b":{}"#, entry("[2]", 0, 8), entry("[1]", 12, 16)),
        format!(r#""a":{}"#, entry("[2]", 8, 0)),
        format!(r#""a":{}"#, entry("[2]", 0, u64::MAX)),
        format!(r#""a":{}"#, entry("[3]", 0, 8)),
        format!(r#""a":{}"#, entry("[-2]", 0, 8)),
        format!(r#""a":{}"#, entry("[4611686018427387904,4]", 0, 8)),
        format!(r#""a":{}"#, entry("[4611686018427387906]", 0, 8)),
        format!(r#""a":{}"#, r#"{"dtype":"F7","shape":[2],"data_offsets":[0,8]}"#),
        // The same name twice, over different bytes.
        format!(r#""a":{},"a":{}"#, entry("[1]", 0, 4), entry("[1]", 4, 8)),
    ] {
        hostile.push(safetensors(&format!("{{{entries}}}"), &[0; 16]));
        hostile.push(safetensors(&format!("{{{entries}}}"), &[0; 8]));
    }
    for bytes in hostile {
        let error = open(&bytes).unwrap_err();
        assert!(matches!(error, WeightsError::Invalid { .. }), "{error}");
    }
    // Empty dimensions must not overflow the product.
    let empty = format!(r#"{{"a":{}}}"#, entry("[0,4611686018427387904,4]", 0, 0));
    if let Ok(weights) = open(&safetensors(&empty, &[])) {
        drop(weights.tensor("a"));
    }
    // Unaligned data is also read.
    let odd = format!(
        r#"{{"b":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}},"a":{}}}"#,
        entry("[2]", 1, 9)
    );
    let data = [&[7u8][..], &1.5f32.to_le_bytes(), &(-2f32).to_le_bytes()].concat();
    for padding in 0..4 {
        let header = format!("{odd}{}", " ".repeat(padding));
        let tensor = open(&safetensors(&header, &data)).unwrap().tensor("a").unwrap();
        assert_eq!(Vec::<f32>::try_from(tensor).unwrap(), [1.5, -2.0]);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Reads everything in a file. The content does not matter, only that reading ends well.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(weights) = open(bytes) else { return false };
    for name in weights.names() {
        if let Ok(tensor) = weights.tensor(name) {
            let sum = tensor.to_kind(Kind::Double).sum(Kind::Double);
            std::hint::black_box(sum.double_value(&[]));
        }
    }
    true
}

#[test]
fn damaged_files_are_errors_or_weights() {
    for name in [
        "transformers_sharded/model-00001-of-00002.safetensors",
        "aesthetic/head.pth",
        "open_clip_pt/model.pt",
    ] {
        let whole = fs_err::read(fixture(name)).unwrap();
        assert!(read_all(&whole));
        for part in 0..64 {
            let length = whole.len() * part / 64;
            assert!(!read_all(&whole[..length]), "{name}: {part}/64 of the file was accepted");
        }
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..200 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let place = (seed >> 33) as usize;
            let mut damaged = whole.clone();
            // Every second time near the end or the beginning, because the directories are there.
            let at = match place % 4 {
                0 => whole.len() - 1 - place / 4 % whole.len().min(2000),
                1 => place / 4 % whole.len().min(2000),
                _ => place / 4 % whole.len(),
            };
            damaged[at] ^= 1 << (seed >> 29 & 7);
            read_all(&damaged);
        }
    }
}

#[test]
fn an_index_cannot_leave_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let shard = safetensors(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]);
    fs_err::write(folder.path().join("s.safetensors"), &shard).unwrap();
    let open = |json: &str| {
        fs_err::write(&index, json).unwrap();
        Weights::open(folder.path())
    };
    let weights = open(r#"{"weight_map":{"a":"s.safetensors"}}"#).unwrap();
    assert_eq!(weights.files().len(), 2);
    for (json, reason) in [
        (r#"{"weight_map":{"a":"../s.safetensors"}}"#, "beside the index"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "beside the index"),
        (r#"{"weight_map":{"a":"x\\s.safetensors"}}"#, "beside the index"),
        (r#"{"weight_map":{"a":"s.safetensors\u0000"}}"#, "beside the index"),
        (r#"{"weight_map":{"a":"model.safetensors.index.json"}}"#, "an index itself"),
        (r#"{"weight_map":{"b":"s.safetensors"}}"#, "is not where"),
        (r#"{"weight_map":{"a":"s.safetensors","b":"s.safetensors"}}"#, "none of the shards"),
        (r#"{"weight_map":{"a":"missing.safetensors"}}"#, "missing.safetensors"),
        (r#"{"weight_map":[]}"#, "not a valid index"),
        ("", "not a valid index"),
    ] {
        let error = open(json).unwrap_err().to_string();
        assert!(error.contains(reason), "{json}: {error}");
    }
}

/// f32 weights are the file's own memory, which stays mapped while a tensor lives.
#[test]
fn mapped_tensors_outlive_the_weights() {
    let path = fixture("transformers/model.safetensors");
    let weights = Weights::open(&path).unwrap();
    let first = weights.tensor("visual_projection.weight").unwrap();
    let second = weights.tensor("visual_projection.weight").unwrap();
    assert_eq!(first.data_ptr(), second.data_ptr());
    let sum = first.sum(Kind::Double).double_value(&[]);
    drop((weights, first));
    let view: Tensor = second.narrow(0, 1, 2);
    drop(second);
    assert!(view.sum(Kind::Double).double_value(&[]).is_finite());
    // Writing changes a private copy.
    let before = fs_err::read(&path).unwrap();
    let weights = Weights::open(&path).unwrap();
    let mut tensor = weights.tensor("visual_projection.weight").unwrap();
    assert_eq!(tensor.sum(Kind::Double).double_value(&[]), sum);
    drop(tensor.zero_());
    assert_eq!(fs_err::read(&path).unwrap(), before);
}
