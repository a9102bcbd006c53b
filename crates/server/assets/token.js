// Who looks at the page: whoever has signed in, by a cookie that scripts can't read, or the holder of a token, from
// the link's fragment or asked for. A token is kept for the tab only and never put into a URL that is sent.

// The link that a node's start prints signs in once.
const claimed = (async () => {
  const match = location.hash.match(/claim=([0-9a-f]{40})/);
  if (!match) return;
  history.replaceState(null, "", location.pathname);
  sessionStorage.removeItem("token");
  const answer = await post("/auth/claim", { claim: match[1] });
  return answer.ok ? undefined : (await answer.json()).detail;
})();

function post(path, body) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
}

export function storedToken() {
  const match = location.hash.match(/token=([0-9a-f]{40})/);
  if (match) {
    sessionStorage.setItem("token", match[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

// What a call shows: without a token the browser adds the cookie by itself.
export function credential() {
  const token = storedToken();
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...credential() } });
  if (response.status === 401) throw new Error("sign in");
  if (!response.ok) throw new Error((await response.json()).detail);
  return response;
}

// Signs in with name and password; what went wrong, or nothing.
async function signIn(username, password) {
  const response = await post("/login", { username, password });
  return response.ok ? undefined : (await response.json()).detail;
}

async function askWho(place, message) {
  place.innerHTML = `<form class="token" id="people"><h2>Sign in</h2><p id="why" role="alert"></p>
      <label for="name">Name or e-mail address</label><input id="name" autocomplete="username" required>
      <label for="password">Password</label><input id="password" type="password" autocomplete="current-password" required>
      <button>Sign in</button><p id="provider" hidden><a href="/auth/oidc">Sign in at <span></span></a></p></form>
    <form class="token" id="operator"><label for="token">Or the operator's token</label>
      <input id="token" type="password" autocomplete="off" required pattern="[0-9a-f]{40}" title="40 hexadecimal digits">
      <button>Open</button><p>It is in the file <code>operator.token</code> of the data folder.</p></form>`;
  const why = place.querySelector("#why");
  why.textContent = message ?? "";
  fetch("/auth/providers").then(async (response) => {
    const { providers } = await response.json();
    if (!providers.length) return;
    place.querySelector("#provider span").textContent = providers[0].name;
    place.querySelector("#provider").hidden = false;
  });
  place.querySelector("#name").focus();
  return new Promise((resolve) => {
    place.querySelector("#people").addEventListener("submit", async (event) => {
      event.preventDefault();
      const wrong = await signIn(place.querySelector("#name").value.trim(), place.querySelector("#password").value);
      if (!wrong) return resolve();
      why.textContent = wrong;
      place.querySelector("#password").select();
    });
    place.querySelector("#operator").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem("token", place.querySelector("#token").value.trim());
      resolve();
    });
  });
}

// Calls `read`, asking who it is as often as nobody is known.
export async function withToken(place, read) {
  let wrong = await claimed;
  for (;;) {
    try {
      return await read();
    } catch (error) {
      if (error.message !== "sign in") throw error;
      const message = wrong ?? (storedToken() ? "That token is not valid." : undefined);
      wrong = undefined;
      sessionStorage.removeItem("token");
      await askWho(place, message);
    }
  }
}
