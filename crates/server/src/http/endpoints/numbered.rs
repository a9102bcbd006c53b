//! Endpoints that answer pages by their number, with how many there are.

use super::{Asked, Question, shown};
use crate::http::problem::{Answer, Problem};
use crate::http::sql::{rows, typed};

/// Answers a page.
pub async fn answer(question: &Question, asked: &Asked, size: usize) -> Answer {
    let page = match asked.beside.get("page").map(|text| (text, text.parse::<u64>())) {
        None => 1,
        Some((_, Ok(page))) if page > 0 => page,
        Some((text, _)) => {
            let detail = format!("\"{text}\" is not a whole number from 1");
            return Err(Problem::parameter("page", detail));
        }
    };
    let (found, count) = question.numbered(size, page).await?;
    let pages = count.div_ceil(size as u64).max(1);
    if page > pages {
        let detail = format!("there is no page {page}; the last one is {pages}");
        return Err(Problem::not_found("page_not_found", detail).with("total_pages", pages.into()));
    }
    let result = shown(found)?;
    let body = format!(
        "{{\"count\":{count},\"total_pages\":{pages},\"current_page\":{page},\"has_next\":{},\"has_previous\":{},\"results\":[{}]}}",
        page < pages,
        page > 1,
        rows(&result, &result.names(), ",")
    );
    question.call.saw_rows(&question.node, result.row_count(), body.as_bytes());
    Ok(typed("application/json", body))
}
