import { call, withToken } from "/assets/token.js";

const main = document.getElementById("main");
const health = document.getElementById("health");
const number = (value) => (value ?? 0).toLocaleString("en");

function table(title, columns, rows) {
  const section = document.createElement("section");
  const heading = document.createElement("h2");
  heading.textContent = title;
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  const element = document.createElement("table");
  const head = element.createTHead().insertRow();
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.textContent = column.name;
    cell.scope = "col";
    if (column.number) cell.className = "number";
    head.append(cell);
  }
  const body = element.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    columns.forEach((column, at) => {
      const cell = line.insertCell();
      cell.textContent = column.number ? number(row[at]) : (row[at] ?? "");
      cell.className = column.number ? "number" : (column.state ? row[at] : "");
    });
  }
  scroll.append(element);
  section.append(heading, scroll);
  return section;
}

async function read(path) {
  return (await call(path)).json();
}

async function show() {
  const [state, streams, tables, endpoints, views] = await Promise.all([
    fetch("/healthz").then((answer) => answer.json()),
    read("/api/v1/streams"), read("/api/v1/tables"), read("/api/v1/endpoints"), read("/api/v1/views"),
  ]);
  health.textContent = `${state.version} · ${state.status} · up ${number(state.uptime_s)} s`;
  const count = (name, column) => ({ name, number: true, ...column });
  const example = document.createElement("pre");
  example.textContent = `curl -X POST ${location.origin}/api/v1/streams/STREAM/events \\
  -H "Authorization: Bearer $(cat DATA/operator.token)" \\
  -H "Content-Type: application/json" -d '[{"…": "…"}]'`;
  main.replaceChildren(
    table("Streams", [{ name: "Name" }, { name: "From" }, count("Events"), count("Lake files"), count("Lake bytes")],
      streams.streams.map((s) => [s.name, s.origin, s.events, s.lake?.files, s.lake?.bytes])),
    table("Tables", [{ name: "Name" }, { name: "From" }, count("Lag")],
      tables.tables.map((t) => [t.name, t.source, t.lag])),
    table("Views", [{ name: "Name" }, { name: "State", state: true }, count("Lag"), count("Rows"), count("Late"), count("Dead"), { name: "Last error" }],
      views.views.map((v) => [v.name, v.state, v.lag, v.applied.taken, v.applied.late, v.applied.dead, v.last_error])),
    table("Endpoints", [{ name: "Path" }, { name: "Needs" }], endpoints.endpoints.map((e) => [e.path, e.requires])),
    example,
  );
}

async function keepShowing() {
  try {
    await withToken(main, show);
  } catch (error) {
    health.textContent = error.message;
  }
  setTimeout(keepShowing, 2000);
}
keepShowing();
