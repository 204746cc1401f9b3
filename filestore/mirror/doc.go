// Package mirror copies blobs between servers. Handler gives blobs out of one
// store; a Mirror pulls what its own store lacks from the servers that have it.
//
// Blobs are immutable and named by their content, so any server will do for any
// of them and every byte is verified on its way to the disk: a peer can be slow or
// wrong, it cannot do harm.
//
//	POST /v1/blobs                  body: digests, 32 bytes each, at most 4096
//	                                reply: for each, in the order asked, digest (32),
//	                                size (8, big endian; -1: not here), content
//	GET  /v1/blobs/HEX?offset=N     one blob from byte N on, Content-Length says
//	                                how much that is; 404: not here
//
// A damaged blob is "not here"; so is, in a batch, one that cannot be read at this
// moment.
//
// One Pull knows for each missing blob which peers turned out not to have it, or
// sent something else. Each peer has two workers, and each of these takes as much
// of what is left as fits one request: small blobs in batches, big ones alone.
// So a fast peer does more of the work than a slow one, and nobody plans. What
// breaks off goes back; a big blob keeps the bytes that it has and goes on from
// there with whichever peer takes it next. When pieces from several peers do not
// add up to the digest, each is asked for all of it, to learn who was wrong.
//
// A peer from which nothing comes for Options.Stall is left for ten seconds, as is
// one that fails three times in a row or sends wrong content three times. A peer
// that is slow (below 512 KiB a second, while another is eight times as fast or was
// not tried) gets only what no other peer has. Only the time spent waiting for the
// peer counts, not that for our own disk.
//
// Goroutines: two workers a peer and one for each big blob under way, all of them
// owned by the Pull and ended when it returns. The caller's goroutine does the
// rest: it commits every two seconds, so that a restart goes on where it was, asks
// for the peers again, and reports. A big blob cut off by a restart begins anew.
//
// Several Pulls of one Mirror share its streams, and a blob that one of them
// is fetching the others wait for. All of their state is under Mirror.mu, which is
// never held during disk or network operations.
package mirror
