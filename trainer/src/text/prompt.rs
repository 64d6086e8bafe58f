//! From bin names to token sequences.

use instant_clip_tokenizer::{Token, Tokenizer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

use super::TextError;

/// Number of tokens CLIP knows.
pub(super) const VOCABULARY: usize = 49_408;

/// The sentence around each bin's name.
///
/// The tokens are `<start> context name "." <end>`, each part tokenised on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Words shared by all bins, such as "age estimation: the person is a"; may be empty.
    pub context: String,
    /// The bins' names in order, such as "child", "teenager".
    pub bins: Vec<String>,
    /// Where the name stands.
    #[serde(default)]
    pub placement: Placement,
}

/// Where the bin's name stands in the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// After the context.
    #[default]
    Tail,
    /// Between the halves of the context; of an odd number of tokens the larger half follows.
    Middle,
    /// Before the context.
    Front,
}

/// The tokens of a prompt, part by part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PromptTokens {
    /// Start of text, full stop, end of text.
    pub(super) marks: [u16; 3],
    /// The words shared by all bins.
    pub(super) context: Vec<u16>,
    /// How many of them stand ahead of the name.
    pub(super) split: usize,
    /// The bins' names.
    pub(super) names: Vec<Vec<u16>>,
}

impl Prompt {
    /// The token sequence of each bin, start and end included, at most `limit` tokens long.
    ///
    /// # Errors
    ///
    /// [`TextError::PromptTooLong`] beyond the limit; [`TextError::BinName`] for a name without
    /// tokens or with the same tokens as an earlier one.
    pub fn tokens(&self, limit: usize) -> Result<Vec<Vec<u16>>, TextError> {
        Ok(self.parts(limit)?.sentences())
    }

    /// The same, apart.
    pub(super) fn parts(&self, limit: usize) -> Result<PromptTokens, TextError> {
        let tokenizer = Tokenizer::new();
        let context = encode(&tokenizer, &self.context);
        let names: Vec<_> = self
            .bins
            .iter()
            .map(|bin| encode(&tokenizer, bin))
            .collect();
        let stop = encode(&tokenizer, ".");
        let tokens = PromptTokens {
            marks: [
                tokenizer.start_of_text().to_u16(),
                stop.first().copied().unwrap_or_default(),
                tokenizer.end_of_text().to_u16(),
            ],
            split: match self.placement {
                Placement::Tail => context.len(),
                Placement::Middle => context.len() / 2,
                Placement::Front => 0,
            },
            context,
            names,
        };
        self.check(&tokens, limit)?;
        Ok(tokens)
    }

    fn check(&self, tokens: &PromptTokens, limit: usize) -> Result<(), TextError> {
        let mut seen = BTreeSet::new();
        for (index, (bin, name)) in self.bins.iter().zip(&tokens.names).enumerate() {
            let bin = bin.clone();
            let length = tokens.marks.len() + tokens.context.len() + name.len();
            let problem = match (name.is_empty(), seen.insert(name)) {
                (true, _) => "has no words",
                (_, false) => "reads like an earlier bin",
                _ if length > limit => {
                    let tokens = length;
                    return Err(TextError::PromptTooLong { bin, tokens, limit });
                }
                _ => continue,
            };
            return Err(TextError::BinName {
                index,
                bin,
                problem,
            });
        }
        Ok(())
    }
}

impl PromptTokens {
    /// The sentence of each bin.
    fn sentences(&self) -> Vec<Vec<u16>> {
        let names = self.names.iter();
        names
            .map(|name| arrange(self.marks, &self.context, self.split, name))
            .collect()
    }
}

/// A sentence: start, the context around the name, full stop, end.
pub(super) fn arrange<T: Copy>(
    [start, stop, end]: [T; 3],
    context: &[T],
    split: usize,
    name: &[T],
) -> Vec<T> {
    let (before, after) = context.split_at(split);
    [&[start], before, name, after, &[stop, end]].concat()
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u16> {
    let mut tokens = Vec::new();
    tokenizer.encode(text, &mut tokens);
    tokens.into_iter().map(Token::to_u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(context: &str, bins: &[&str], placement: Placement) -> Prompt {
        Prompt {
            context: context.into(),
            bins: bins.iter().map(|bin| bin.to_string()).collect(),
            placement,
        }
    }

    #[test]
    fn the_name_stands_where_it_is_placed() {
        // "a photo of" is 320 1125 539, "cat" 2368, "." 269.
        for (placement, middle) in [
            (Placement::Tail, [320, 1125, 539, 2368]),
            (Placement::Middle, [320, 2368, 1125, 539]),
            (Placement::Front, [2368, 320, 1125, 539]),
        ] {
            let tokens = prompt("a photo of", &["cat"], placement).tokens(77);
            let expected = [&[49406][..], &middle, &[269, 49407]].concat();
            assert_eq!(tokens.expect("tokens"), [expected], "{placement:?}");
        }
        let bare = prompt("", &["cat"], Placement::Middle).tokens(77);
        assert_eq!(bare.expect("tokens"), [[49406, 2368, 269, 49407]]);
    }

    #[test]
    fn names_that_cannot_work_are_refused() {
        let check = |bins: &[&str], limit: usize, expected: &str| {
            let error = prompt("a photo of", bins, Placement::Tail).tokens(limit);
            let text = error.expect_err("an error").to_string();
            assert!(text.contains(expected), "{text}");
        };
        check(&["cat", " "], 77, "bin 1 (\" \") has no words");
        check(&["cat", "CAT"], 77, "bin 1 (\"CAT\") reads like");
        check(&["cat"], 6, "\"cat\" has 7 tokens, at most 6");
        assert!(
            prompt("a photo of", &["cat"], Placement::Tail)
                .tokens(7)
                .is_ok()
        );
    }

    #[test]
    fn tokens_equal_the_reference() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../shared/golden/clip-tiny.json"
        );
        let Ok(text) = std::fs::read_to_string(path) else {
            println!("skipped: no golden vectors at {path}");
            return;
        };
        let golden: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let case = &golden["vit-gelu"];
        let texts: Vec<String> = serde_json::from_value(case["texts"].clone()).expect("texts");
        let tokens: Vec<Vec<u16>> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
        let tokenizer = Tokenizer::new();
        for (text, tokens) in texts.iter().zip(tokens) {
            assert_eq!(
                encode(&tokenizer, text),
                tokens[1..tokens.len() - 1],
                "{text}"
            );
        }
    }
}
