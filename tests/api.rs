//! The public types: which threads may have them, and which of them can be kept as JSON.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Debug;

use hubrouter::{exchange, feedback, learn};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What every public type is.
fn usual<T: Debug + Send + Sync + 'static>() {}

/// What data is.
fn data<T: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static>() {}

#[test]
fn every_public_type_is_debug_send_and_sync() {
    usual::<hubrouter::AttributeTest>();
    usual::<hubrouter::Edit>();
    usual::<hubrouter::Encoder>();
    usual::<hubrouter::Error>();
    usual::<hubrouter::ImportOptions>();
    usual::<hubrouter::Imported>();
    usual::<hubrouter::Learner>();
    usual::<hubrouter::PolicyHandle>();
    usual::<hubrouter::Router>();
    usual::<hubrouter::Store>();
    usual::<hubrouter::Trace>();
    usual::<hubrouter::StoreWatch>();
    #[cfg(feature = "tower")]
    {
        usual::<hubrouter::layer::RouteLayer>();
        usual::<hubrouter::layer::RouteReason>();
        usual::<hubrouter::layer::RouteRecord>();
        usual::<hubrouter::layer::RouteService<()>>();
    }
    usual::<exchange::Adopted>();
    usual::<exchange::AdoptedHead>();
    usual::<exchange::ExportedAdapter>();
    usual::<exchange::ExportedGeneration>();
    usual::<exchange::ImportedGeneration>();
    usual::<feedback::FeedbackLog>();
    usual::<feedback::FeedbackOptions>();
    usual::<feedback::Shadow>();
    usual::<learn::Accuracy>();
    usual::<learn::Control>();
    usual::<learn::Example>();
    usual::<learn::Experience>();
    usual::<learn::FollowedPrompts>();
    usual::<learn::MemoryFate>();
    usual::<learn::ObservedExamples>();
    usual::<learn::Outcome>();
    usual::<learn::Remembered>();
    usual::<learn::Report>();
    usual::<learn::Status>();
    usual::<learn::Withheld>();
}

#[test]
fn data_can_be_compared_and_kept_as_json() {
    data::<hubrouter::AbstainReason>();
    data::<hubrouter::AbstainRule>();
    data::<hubrouter::Abstention>();
    data::<hubrouter::Calibrated>();
    data::<hubrouter::Calibration>();
    data::<hubrouter::CacheStats>();
    data::<hubrouter::ChatNeeds>();
    data::<hubrouter::ChatRecord>();
    data::<hubrouter::ChatShape>();
    data::<hubrouter::ChatTaken>();
    data::<hubrouter::Confidence>();
    data::<hubrouter::Constraint>();
    data::<hubrouter::Decision>();
    data::<hubrouter::Deployment>();
    data::<hubrouter::DeviceChoice>();
    data::<hubrouter::Difference>();
    data::<hubrouter::DomainScore>();
    data::<hubrouter::EncoderPin>();
    data::<hubrouter::ErrorKind>();
    data::<hubrouter::Excluded>();
    data::<hubrouter::Explanation>();
    data::<hubrouter::GenerationId>();
    data::<hubrouter::GenerationReport>();
    data::<hubrouter::Hub>();
    data::<hubrouter::Introduced>();
    data::<hubrouter::Learned>();
    data::<hubrouter::LeftOut>();
    data::<hubrouter::LeftOutCount>();
    data::<hubrouter::Manifest>();
    data::<hubrouter::Model>();
    data::<hubrouter::ModelCard>();
    data::<hubrouter::ModelId>();
    data::<hubrouter::ModelPattern>();
    data::<hubrouter::NearDomain>();
    data::<hubrouter::NearModel>();
    data::<hubrouter::NewModel>();
    data::<hubrouter::Options>();
    data::<hubrouter::ParetoPoint>();
    data::<hubrouter::Parts>();
    data::<hubrouter::Policy>();
    data::<hubrouter::PolicyRecord>();
    data::<hubrouter::Pruned>();
    data::<hubrouter::QueueStats>();
    data::<hubrouter::Ranked>();
    data::<hubrouter::Request>();
    data::<hubrouter::ResponseFormat>();
    data::<hubrouter::Revisions>();
    data::<hubrouter::RiskPoint>();
    data::<hubrouter::RouterStats>();
    data::<hubrouter::RunnerUp>();
    data::<hubrouter::SessionKey>();
    data::<hubrouter::SessionOptions>();
    data::<hubrouter::SessionOutcome>();
    data::<hubrouter::SessionRecord>();
    data::<hubrouter::Strengths>();
    data::<hubrouter::TakenFrom>();
    data::<hubrouter::Timing>();
    data::<hubrouter::TradeOff>();
    data::<feedback::Feedback>();
    data::<feedback::FeedbackLine>();
    data::<feedback::KeepPrompt>();
    data::<feedback::LoggedModel>();
    data::<feedback::NoAnswer>();
    data::<feedback::SkippedLines>();
    data::<learn::Settings>();
}

#[test]
fn a_decision_and_a_card_come_back_from_json() {
    let options = hubrouter::Options::default().device("cpu").threads(1);
    let router = hubrouter::Router::open("weights/cmrbench", options).unwrap();
    let decision = router.route(&hubrouter::Request::new("Translate this letter."));
    let decision = decision.unwrap();
    let json = serde_json::to_string(&decision).unwrap();
    let back: hubrouter::Decision = serde_json::from_str(&json).unwrap();
    assert_eq!(back, decision);
    assert_eq!(serde_json::to_string(&back).unwrap(), json);

    let card = r#"{"model_name":"m","domain":"d","functionality":["x","y"],"created_at":"1970-01-02","price":0.5}"#;
    let card: hubrouter::ModelCard = serde_json::from_str(card).unwrap();
    let json = serde_json::to_string(&card).unwrap();
    let want = r#"{"model_name":"m","domain":"d","functionality":"x, y","created_at":86400000,"price":0.5}"#;
    assert_eq!(json, want);
    assert_eq!(
        serde_json::from_str::<hubrouter::ModelCard>(&json).unwrap(),
        card
    );
}
