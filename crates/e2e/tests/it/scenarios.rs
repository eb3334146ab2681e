//! The scenarios of the project on real servers; the simulator plays the same texts.

use anyhow::Result;
use quorate_e2e::play::play;

macro_rules! scenarios {
    ($($name:ident $file:literal)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            play(include_str!(concat!("../../../../scenarios/", $file)))
        })*

        #[test]
        fn none_is_left_out() -> Result<()> {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scenarios");
            let mut files = Vec::new();
            for entry in std::fs::read_dir(dir)? {
                files.push(entry?.file_name().to_string_lossy().into_owned());
            }
            files.sort();
            assert_eq!(files, [$($file),*]);
            Ok(())
        }
    };
}

scenarios! {
    forgotten_promise_async "forgotten-promise-async.scn"
    full_disk "full-disk.scn"
    half_deaf "half-deaf.scn"
    handovers "handovers.scn"
    leader_mute "leader-mute.scn"
    no_majority "no-majority.scn"
    power_loss "power-loss.scn"
    reports_are_not_next "reports-are-not-next.scn"
    rewound_twice "rewound-twice.scn"
    suspended_writer "suspended-writer.scn"
    two_nodes_and_a_witness "two-nodes-and-a-witness.scn"
    writer_cut_off "writer-cut-off.scn"
    writer_host_lost "writer-host-lost.scn"
}
