import { call, withToken } from "/assets/token.js";

const place = document.getElementById("redoc");
const spec = await withToken(place, async () => (await call("/api/openapi.json")).json());
place.replaceChildren();
window.Redoc.init(spec, { disableSearch: false, hideDownloadButton: true }, place);
