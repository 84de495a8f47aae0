//! The body of a request: `/v1/chat/completions` with images as data URLs.
//!
//! Behaviour matched: openai/openai-openapi `createChatCompletion`, as vLLM, sglang and llama.cpp
//! serve it. The images come before the text, as most chat templates expect.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::config::{VlmConfig, VlmRead};
use crate::external::EncodedImage;

/// The most log-probabilities of a token that servers give.
const TOP_LOGPROBS: u32 = 20;

/// What requests of a scorer have in common. Answers are kept by it, the images and the prompt.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Shape {
    model: String,
    prompt: String,
    body: Map<String, Value>,
}

impl Shape {
    pub(super) fn new(config: &VlmConfig) -> Self {
        let mut body = Map::new();
        let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
        let extra = config.extra_body.clone().unwrap_or_default();
        // Newer models of OpenAI know only the second name.
        if !extra.contains_key("max_completion_tokens") {
            set("max_tokens", config.tokens().into());
        }
        set("temperature", 0.into());
        if config.read == VlmRead::YesNo {
            set("logprobs", true.into());
            set("top_logprobs", TOP_LOGPROBS.into());
        }
        body.extend(extra);
        Self { model: config.model.clone(), prompt: config.prompt.clone(), body }
    }

    /// The request for these images and this text.
    pub(super) fn body(&self, images: &[EncodedImage], text: &str) -> Vec<u8> {
        let mut content: Vec<Value> = images.iter().map(image_part).collect();
        content.push(json!({ "type": "text", "text": text }));
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.as_str().into());
        body.insert("messages".to_owned(), json!([{ "role": "user", "content": content }]));
        body.extend(self.body.clone());
        // A map of texts and numbers always has a form in JSON.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

fn image_part(image: &EncodedImage) -> Value {
    let (media_type, _) = image.format();
    let url = format!("data:{media_type};base64,{}", BASE64_STANDARD.encode(image.bytes()));
    json!({ "type": "image_url", "image_url": { "url": url } })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::config::tests::config;
    use super::*;

    #[test]
    fn a_request_has_the_image_and_asks_for_what_is_read() {
        let image = EncodedImage::new(Bytes::from_static(b"\x89PNG\r\n\x1a\n"));
        let of = |lines: &str| -> Value {
            let body = Shape::new(&config(lines)).body(std::slice::from_ref(&image), "Is it x?");
            serde_json::from_slice(&body).unwrap()
        };
        let yes_no = of("read = \"yes-no\"");
        assert_eq!(
            yes_no["messages"][0]["content"][0]["image_url"]["url"],
            "data:image/png;base64,iVBORw0KGgo="
        );
        assert_eq!(yes_no["messages"][0]["content"][1]["text"], "Is it x?");
        assert_eq!((&yes_no["max_tokens"], &yes_no["top_logprobs"]), (&json!(1), &json!(20)));
        assert_eq!(yes_no["logprobs"], true);
        let number = of("read = \"number\"\nextra_body = { seed = 1, temperature = 0.5 }");
        assert_eq!((&number["seed"], &number["temperature"]), (&json!(1), &json!(0.5)));
        assert_eq!((&number["max_tokens"], number.get("logprobs")), (&json!(1024), None));
        let newer = of("read = \"number\"\nextra_body = { max_completion_tokens = 9 }");
        assert_eq!(newer.get("max_tokens"), None);
    }
}
