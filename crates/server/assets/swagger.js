import { call, credential, withToken } from "/assets/token.js";

const place = document.getElementById("swagger-ui");
const spec = await withToken(place, async () => (await call("/api/openapi.json")).json());
place.replaceChildren();
window.SwaggerUIBundle({
  spec,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    Object.assign(request.headers, credential());
    return request;
  },
});
