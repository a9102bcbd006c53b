//! Bodies that come packed with gzip or zstd. A file may be several packed ones, one behind the other: all of them are read.

use std::io;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use futures::TryStreamExt;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Bytes that are unpacked at a time.
const CHUNK: usize = 64 << 10;

/// The request with its body unpacked. What we can't unpack is left as it is; the handler refuses it, with a reason.
pub fn unpacked(mut request: Request) -> Request {
    let Some(encoding) = request.headers().get(header::CONTENT_ENCODING) else { return request };
    let is = |name: &str| encoding.as_bytes().eq_ignore_ascii_case(name.as_bytes());
    let (is_gzip, is_zstd) = (is("gzip") || is("x-gzip"), is("zstd"));
    if !is_gzip && !is_zstd {
        return request;
    }
    let headers = request.headers_mut();
    headers.remove(header::CONTENT_ENCODING);
    // That of the packed body.
    headers.remove(header::CONTENT_LENGTH);
    request.map(|body| {
        let packed = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
        if is_gzip {
            let mut decoder = GzipDecoder::new(packed);
            decoder.multiple_members(true);
            streamed(decoder)
        } else {
            let mut decoder = ZstdDecoder::new(packed);
            decoder.multiple_members(true);
            streamed(decoder)
        }
    })
}

fn streamed(reader: impl AsyncRead + Send + 'static) -> Body {
    Body::from_stream(ReaderStream::with_capacity(reader, CHUNK))
}
