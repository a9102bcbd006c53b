// The operator's token: from the link's fragment, else from this tab, else asked for. It is kept for
// the tab only and never put into a URL that is sent.
export function storedToken() {
  const match = location.hash.match(/token=([0-9a-f]{40})/);
  if (match) {
    sessionStorage.setItem("token", match[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

export async function call(path, options = {}) {
  const headers = { ...options.headers, Authorization: `Bearer ${storedToken() ?? ""}` };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) throw new Error("sign in");
  if (!response.ok) throw new Error((await response.json()).detail);
  return response;
}

export async function askForToken(place, message) {
  return new Promise((resolve) => {
    place.innerHTML = `<form class="token"><label for="token">Operator's token</label>
      <p id="why"></p><input id="token" type="password" autocomplete="off" required pattern="[0-9a-f]{40}"
      title="40 hexadecimal digits"><button>Open</button>
      <p>It is in the file <code>operator.token</code> of the data folder.</p></form>`;
    place.querySelector("#why").textContent = message ?? "";
    place.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem("token", place.querySelector("#token").value.trim());
      resolve();
    });
    place.querySelector("#token").focus();
  });
}

// Calls `read`, asking for the token as often as it is missing or wrong.
export async function withToken(place, read) {
  let message;
  for (;;) {
    if (!storedToken()) await askForToken(place, message);
    try {
      return await read();
    } catch (error) {
      if (error.message !== "sign in") throw error;
      sessionStorage.removeItem("token");
      message = "That token is not valid.";
    }
  }
}
