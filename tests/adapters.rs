//! Every op on a software adapter at every subgroup size that Mesa's has.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![cfg(feature = "gpu")]

mod common;

use common::command::{hubrouter, lines};

/// Lanes of a subgroup are those of a vector of Mesa's software adapter, whose bits a variable sets;
/// so each size takes a process of its own.
#[test]
fn every_op_passes_at_every_subgroup_size() {
    let adapter = common::adapter().to_lowercase();
    for lanes in [4, 8, 16] {
        let mut doctor = hubrouter(&["doctor", "--json"]);
        doctor.env("LP_NATIVE_VECTOR_WIDTH", (32 * lanes).to_string());
        let output = doctor.output().unwrap();
        let [report] = lines(&output).try_into().unwrap();
        assert_eq!(output.status.code(), Some(0), "{lanes} lanes: {report}");
        let adapters = report["adapters"].as_array().unwrap();
        let mut software = adapters.iter().filter(|found| {
            let name = found["name"].as_str().unwrap().to_lowercase();
            name.contains(&adapter) && name.contains("llvmpipe")
        });
        let Some(found) = software.next() else {
            // Another adapter has the sizes that it has.
            return;
        };
        let sizes = &found["limits"]["subgroup_size"];
        assert_eq!((&sizes[0], &sizes[1]), (&lanes.into(), &lanes.into()));
        let tests = report["self_test"].as_array().unwrap();
        let own = tests.iter().filter(|test| test["device"] == found["name"]);
        assert!(own.clone().count() > 20);
        for test in own {
            assert_eq!(test["ok"], true, "{lanes} lanes: {test}");
        }
    }
}
