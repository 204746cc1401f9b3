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
// Caveat: the API has no authentication of its own yet. It is meant for a
// loopback address or a Unix socket, which config enforces, and it refuses
// requests whose Host or Origin header is not local, so that a web page in an
// operator's browser cannot reach it by rebinding a name.
package api
