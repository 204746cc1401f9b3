// Package filestore keeps blobs on one disk: content named by its SHA-256,
// written so that a crash leaves whole blobs or none, verified on the way in and
// again on the way out, and removed when nothing names it any more.
//
//	DIR/blobs/ab/abcd…   one file a blob, named by its 64 hexadecimal digits;
//	                     unfinished-… are being written or removed, Open removes them
//	DIR/quarantine/      damaged blobs set aside for people to look at; bounded
//	DIR/lock             held (flock) while a Store is open
//
// An Ingest is a publish in progress. What it names (Protect, Put) is safe from
// Collect until its Close, so the order for a publish is: Protect everything, ask
// Has, Put what is missing, Commit, make the names of the blobs known (Raft), Close.
//
// Content is verified before it is served. Small files are hashed when they enter
// the cache in memory. Large ones are hashed at the first open after a start and
// whenever size, mtime, ctime or inode differ from those of the last check, and
// are then streamed by the caller from an open file. Rot that changes none of
// these while the file is being served is found by the scrubber, which reads
// past the page cache and hashes everything once per ScrubPeriod.
//
// A damaged blob is renamed into quarantine/, Has becomes false and OnDamage is
// told. A blob whose file is gone is reported the same way. Putting the blob again
// heals both.
//
// Goroutines: Put starts one now and then that sets the disk to work, Commit several
// that rename; Commit and Close wait for them. Run, the scrubber, is the caller's goroutine
// and touches nothing but blobs and their records. All methods may be called from
// any goroutine. Locks, outermost first: Store.committing, Store.files,
// Store.protection, Store.mu. No disk operation happens under Store.mu, so that
// Has never waits for a disk.
package filestore
