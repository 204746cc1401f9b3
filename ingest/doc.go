// Package ingest turns what stands at a path into what can be published: a
// manifest, the modification times of its entries, and the content of its blobs.
//
// A source is a directory or a tar archive (plain, gzip or zstd). It is
// recognised by its content, never by its name. Open reads it once and hashes
// everything, and offers the files of a directory to Options.Want as it goes;
// Source.Blobs reads it a second time and hands out only the blobs that
// somebody wants. Nothing is ever unpacked and nothing is written to disk.
//
// A tree is held in memory as nodes by path. A variable tar is the NAME.tar.gz
// that systools:make_tar puts into a release for the applications below the
// directory that the boot variable NAME stands for; when the boot script uses
// $NAME, its entries become part of the tree, at its root. A followed link is a
// symlink out of the directory that Options.Dereference replaced by what it pointed to.
//
// What is refused, is refused with the name of the entry: absolute names, "..",
// names that are not UTF-8, names that stand twice, entries below a link or a file,
// links that leave the tree, devices, sockets and pipes, and whatever passes a
// limit. A backslash is an ordinary character, as it is for the file systems
// that Erlang releases are made on. Cookies (eboot.IsSecretPath) are left out. Nothing reaches the
// caller that eboot.Manifest.Check would refuse.
//
// Goroutines: Open of a directory walks the names with one and hashes files with several
// beside it, which call Options.Want and Options.Put; all have ended when it returns.
// Nothing else starts any. A Source is used by one goroutine at a time.
//
// Caveats: a directory that changes between the two passes is noticed by the
// content of the blobs that are handed out (eboot.ErrConflict), not by those that nobody
// wanted. Holes of sparse files are read as the zeros they stand for.
package ingest
