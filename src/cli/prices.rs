//! What an answer costs, by the attributes of the registry.

use clap::Args;

use crate::Model;
use crate::error::{Result, bail};
use crate::feedback::Feedback;
use crate::route::within;

/// Where prices stand in the registry.
#[derive(Args)]
pub(super) struct PriceArgs {
    /// Attribute with a model's price, or two: of tokens in and of tokens out [default:
    /// price.input,price.output, or else price]
    #[arg(long, value_name = "ATTRIBUTES")]
    pub(super) price: Option<String>,
    /// Tokens that a price is for
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    pub(super) per: u64,
}

/// Prices of tokens.
pub(super) struct Prices {
    /// Attributes of tokens in and out; the first pair that a model states counts.
    named: Vec<[String; 2]>,
    per: f64,
}

impl PriceArgs {
    pub(super) fn prices(&self) -> Result<Prices> {
        let pair = |input: &str, output: &str| [input.trim().to_owned(), output.trim().to_owned()];
        let named = match &self.price {
            None => vec![pair("price.input", "price.output"), pair("price", "price")],
            Some(text) => match text.split(',').collect::<Vec<_>>()[..] {
                [one] if !one.trim().is_empty() => vec![pair(one, one)],
                [input, output] => vec![pair(input, output)],
                _ => bail!(
                    InvalidRequest,
                    "--price: expected one attribute or two with a comma, found {text:?}"
                ),
            },
        };
        if self.per == 0 {
            bail!(InvalidRequest, "--per: expected at least 1, found 0");
        }
        let per = self.per as f64;
        Ok(Prices { named, per })
    }
}

impl Prices {
    /// The prices of a token in and out; `None` if the model states none.
    fn of(&self, model: &Model) -> Option<[f64; 2]> {
        let price = |name: &String| {
            let value = within(model.attributes.get(name), &model.attributes, name)?;
            let price = value.as_f64().filter(|price| *price >= 0.0)?;
            Some(price / self.per)
        };
        let mut pairs = self.named.iter();
        pairs.find_map(|[input, output]| Some([price(input)?, price(output)?]))
    }

    /// What an answer of `model` with the tokens of `feedback` costs; `None` if it states no price
    /// or no tokens are known. Tokens of one kind alone count as they are.
    pub(super) fn cost(&self, model: &Model, feedback: &Feedback) -> Option<f64> {
        let tokens = [feedback.input_tokens, feedback.output_tokens];
        if tokens == [None, None] {
            return None;
        }
        let [input, output] = tokens.map(|count| count.unwrap_or(0) as f64);
        let [price_in, price_out] = self.of(model)?;
        Some(input * price_in + output * price_out)
    }

    /// The attributes, for messages: `price.input and price.output, or price`.
    pub(super) fn names(&self) -> String {
        let names = self
            .named
            .iter()
            .map(|[input, output]| match input == output {
                true => input.clone(),
                false => format!("{input} and {output}"),
            });
        names.collect::<Vec<_>>().join(", or ")
    }

    pub(super) fn per(&self) -> f64 {
        self.per
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn prices(text: Option<&str>, per: u64) -> Prices {
        let price = text.map(str::to_owned);
        PriceArgs { price, per }.prices().unwrap()
    }

    #[test]
    fn tokens_times_prices() {
        let mut model = Model::new("m", "d");
        let went = Feedback::default().tokens(2_000_000, 500_000);
        let cost = |prices: &Prices, model: &Model| prices.cost(model, &went);
        let usual = prices(None, 1_000_000);
        assert_eq!(cost(&usual, &model), None, "no price");
        model.attributes.insert("price".into(), json!(3));
        assert_eq!(cost(&usual, &model), Some(7.5));
        let parts = json!({"input": 1.5, "output": 4});
        model.attributes.insert("price".into(), parts);
        assert_eq!(cost(&usual, &model), Some(5.0));
        model.attributes.insert("eur".into(), json!(1));
        assert_eq!(cost(&prices(Some("eur"), 1000), &model), Some(2500.0));
        let both = prices(Some("eur, price.output"), 1_000_000);
        assert_eq!(cost(&both, &model), Some(4.0));
        assert_eq!(usual.cost(&model, &Feedback::default()), None, "no tokens");
        let one = Feedback {
            output_tokens: Some(1_000_000),
            ..Feedback::default()
        };
        assert_eq!(usual.cost(&model, &one), Some(4.0));
        for wrong in [json!("3"), json!(-1), json!(null)] {
            model.attributes.insert("eur".into(), wrong);
            assert_eq!(cost(&prices(Some("eur"), 1), &model), None);
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for (price, per) in [(Some("a,b,c"), 1), (Some(" "), 1), (None, 0)] {
            let price = price.map(str::to_owned);
            assert!(PriceArgs { price, per }.prices().is_err());
        }
    }
}
