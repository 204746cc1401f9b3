// Package identity says who a server or an operator is, by an X.509 certificate: makes
// such certificates, and checks them.
//
// A certificate's subject is a URI in its alternative names, with the role in it:
//
//	eboot://prod/server/boot1
//	eboot://prod/operator/alice
//
// Belonging to the same authority is not enough to be let in: role and cluster must be
// right too, so that neither an operator's certificate nor a server's of another cluster
// opens the peer port. A certificate of any authority that puts the URI there will do;
// `eboot tls` makes an authority of its own for each cluster.
//
// The name in a certificate is for people. A server is known by its id, which it makes up
// after its certificate was issued, so the two are not tied together: who has a server's
// certificate is a server of this cluster, under whatever id it gives itself. A server
// that was removed keeps its certificate until that expires; only a new authority ends it
// earlier.
//
// Credentials are the certificate files of one running server. They are looked at again
// when a connection begins and when somebody asks, once a second at most; new files are
// taken when they are whole and fit each other, and until then the old ones stay in use.
//
// Nothing here starts a goroutine.
package identity
