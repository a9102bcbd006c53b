//! Pages and scripts. They hold no data: each asks for the token, keeps it for the tab, and reads the
//! API like any other client. Everything is in the binary, nothing is fetched from elsewhere.

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use std::sync::Arc;
use utoipa_swagger_ui::Config;

fn page(content_type: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
        ),
    );
    response
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What runs.
pub async fn overview() -> Response {
    page(HTML, include_str!("../../assets/overview.html"))
}

/// The API's documentation.
pub async fn docs() -> Redirect {
    Redirect::to("/swagger/index.html")
}

/// The document as ReDoc shows it.
pub async fn redoc() -> Response {
    page(HTML, include_str!("../../assets/redoc.html"))
}

/// ReDoc itself.
pub async fn redoc_script() -> Response {
    page(SCRIPT, include_str!("../../assets/vendor/redoc.standalone.js"))
}

/// Swagger UI.
pub async fn swagger() -> Redirect {
    Redirect::to("/swagger/index.html")
}

/// A file of Swagger UI. Its page and start-up script are ours, because they have to send the token.
pub async fn swagger_file(Path(file): Path<String>) -> Response {
    match file.as_str() {
        "index.html" => return page(HTML, include_str!("../../assets/swagger.html")),
        "start.js" => return page(SCRIPT, include_str!("../../assets/swagger.js")),
        _ => {}
    }
    match utoipa_swagger_ui::serve(&file, Arc::new(Config::default())) {
        Ok(Some(found)) => match HeaderValue::from_str(&found.content_type) {
            Ok(content_type) => {
                let mut response = page(SCRIPT, found.bytes.into_owned());
                response.headers_mut().insert(header::CONTENT_TYPE, content_type);
                response
            }
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Our scripts and styles.
pub async fn asset(Path(file): Path<String>) -> Response {
    match file.as_str() {
        "token.js" => page(SCRIPT, include_str!("../../assets/token.js")),
        "overview.js" => page(SCRIPT, include_str!("../../assets/overview.js")),
        "redoc.js" => page(SCRIPT, include_str!("../../assets/redoc.js")),
        "page.css" => page("text/css; charset=utf-8", include_str!("../../assets/page.css")),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
