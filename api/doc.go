// Package api is the admin API: HTTP and JSON below /v1, the typed client that
// the command line uses, and the one table that turns sentinel errors into
// HTTP statuses and back.
//
// The server knows no replicated state, no Raft and no disk: it asks the small
// interfaces of Backend, whose methods speak in types of the root package. A concept with
// several routes has a file: rollouts.go, fleet.go, events.go, diff.go, publish.go.
// Every write carries a request id, so that repeating it is safe, and may carry
// the generation it expects. A client that knows several servers moves on to the next
// when one fails (moving.go). A read of the replicated state makes sure first that the
// server knows all that was acknowledged; when it cannot, the answer says why not.
//
// Two things can be followed, as JSON lines or as server-sent events (stream.go): boots,
// which change and therefore come again, and events, which come once. An event has the
// same id on every server, so that whoever was cut off goes on at any of them with
// Last-Event-ID. A follower that takes nothing for a minute is cut off.
//
// Goroutines: Serve owns the HTTP server's connections and returns when they
// have ended. Handlers run on the connection's goroutine, with a few more that put
// blobs while an upload is read; a streaming reply
// (boots --follow, events --follow, bundle verify) ends with the request's context. An OpenPublish
// has one goroutine for its requests, which ends with Publish or Close.
//
// Who asks is known before anything is answered, but to a load balancer (routes.go, access.go). A
// listener is a Door: over TLS one shows a token or a certificate; who could open the Unix socket is
// an admin; where a trial has the API open, everybody is. Each route names the least role that may.
// Who asked goes with each change into the replicated state, and so into the events. Strangers are
// bounded: in connections (Limit), in what is read of them, and in what the log says of them.
//
// Caveat: whether a token is good is asked of the state that this server serves. One that is
// cut off from the others takes a token that was revoked meanwhile, for reading; to write it needs a
// leader. Where nothing need be shown, requests whose Host or Origin header is not local are refused,
// so that a web page in an operator's browser cannot reach the API by rebinding a name.
package api
