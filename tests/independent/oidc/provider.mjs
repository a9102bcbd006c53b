// A real OpenID Connect provider for the tests of signing in: people, and a client that may use it.
// Arguments: its port, and where it sends people back to. `claims=id_token` tells everything in the token,
// otherwise it tells more than an id only when it is asked, as the standard has it.
import { Provider } from 'oidc-provider';

const [port, callback, where] = process.argv.slice(2);

const people = {
  ada: { email: 'Ada@example.org', email_verified: true },
  ada2: { email: 'ada@example.org', email_verified: false },
  ben: { email: 'ben@example.org', email_verified: true },
  eve: { email: 'eve@elsewhere.example', email_verified: true },
  nobody: {},
};

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'highwater',
    client_secret: 'known-to-both-of-them-and-to-no-other',
    redirect_uris: [callback],
    response_types: ['code'],
    grant_types: ['authorization_code'],
  }],
  pkce: { required: () => true },
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  conformIdTokenClaims: where !== 'claims=id_token',
  findAccount: (_context, id) => (people[id] ? { accountId: id, claims: () => ({ sub: id, ...people[id] }) } : undefined),
  cookies: { keys: ['only-for-tests'] },
});

provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
