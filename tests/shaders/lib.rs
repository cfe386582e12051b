//! Every entry point of every shader is translated to Metal's language and to Direct3D's.
#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use naga::back::{hlsl, msl, pipeline_constants};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The shaders as the library composes them: each `shader!("op", "part", ...)` of `src/ops`.
fn shaders() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("src/ops")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let code = fs::read_to_string(path).unwrap();
        for call in code.split("shader!(").skip(1) {
            let parts = call.split(')').next().unwrap().split(',');
            let parts: Vec<&str> = parts.map(|part| part.trim().trim_matches('"')).collect();
            let read =
                |path: String| fs::read_to_string(root().join("shaders").join(path)).unwrap();
            let mut source = read(format!("{}.wgsl", parts[0]));
            for part in &parts[1..] {
                source += &read(format!("shared/{part}.wgsl"));
            }
            found.push((parts[0].to_owned(), source));
        }
    }
    found
}

fn checked(source: &str) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source).unwrap();
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .unwrap();
    (module, info)
}

fn to_msl(module: &Module, info: &ModuleInfo, entry: &str) -> String {
    let options = msl::Options {
        lang_version: (2, 3),
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry.to_owned())),
        ..msl::PipelineOptions::default()
    };
    let (text, translation) = msl::write_string(module, info, &options, &pipeline).unwrap();
    let [name] = &translation.entry_point_names[..] else {
        panic!("{entry}: not one entry point")
    };
    format!("{}\n{text}", name.as_ref().unwrap())
}

fn to_hlsl(module: &Module, info: &ModuleInfo, entry: &str) -> String {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry.to_owned())),
    };
    let mut text = String::new();
    let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
    writer.write(module, info, None).unwrap();
    text
}

#[test]
fn every_entry_is_translated_for_metal_and_direct3d() {
    let shaders = shaders();
    let files = fs::read_dir(root().join("shaders")).unwrap();
    let files = files.filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.extension()
            .is_some_and(|extension| extension == "wgsl")
    });
    assert!(shaders.len() >= files.count() && !shaders.is_empty());
    for (name, source) in shaders {
        let (module, info) = checked(&source);
        assert!(!module.entry_points.is_empty(), "{name} has no entry");
        for point in &module.entry_points {
            let entry = Some((ShaderStage::Compute, &*point.name));
            let constants = Default::default();
            let (module, info) =
                pipeline_constants::process_overrides(&module, &info, entry, &constants).unwrap();
            let label = format!("{name}::{}", point.name);
            // Metal's matrices are of 8 x 8; Direct3D has none in this naga.
            let matrices = name == "linear_matrix";
            if !(matrices && source.contains("coop_mat16x16")) {
                let metal = to_msl(&module, &info, &point.name);
                assert!(metal.contains("kernel void"), "{label}");
                assert_eq!(metal.contains("simdgroup_half8x8"), matrices, "{label}");
            }
            if !matrices {
                let direct3d = to_hlsl(&module, &info, &point.name);
                assert!(direct3d.contains("numthreads"), "{label}");
            }
        }
    }
}
