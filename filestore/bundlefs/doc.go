// Package bundlefs shows a bundle as the read-only file tree that a slave sees: a
// manifest held in memory, and blobs for the contents. A name is resolved in the
// manifest alone, so nothing of the host can ever be reached by it.
//
// Names are those of the slave, whose ROOTDIR differs from slave to slave: the
// longest of the roots is stripped, and a relative name starts at the bundle's
// root, as get_cwd says. Names are normalised lexically (`a/../b` is `b`, whether
// or not `a` exists), since releases made by mix spell their paths that way;
// that is the one place where a name means something else than to POSIX.
// Symlinks keep their meaning: they are followed component by component, absolute
// targets through the roots, and one that leaves the tree points to nothing.
//
// Some names are answered with other files of the bundle, so that no slave needs
// a flag that changes with the version: <root>/bin/start.boot is the bundle's boot
// script, <root>/sys.config its sys.config, and <root>/X.config or
// <root>/Y/X.config the one that stands beside or below that, when the root has
// none. These aliases are entries like any other: they are listed, too.
//
// An .ez archive answers as a directory, as OTP's erl_prim_loader does it: the
// first component of a name that ends in ".ez" and is a file is the archive, the rest is a
// member of it. A file of that name that is no readable zip is just a file.
//
// Errors of Get, List and Stat are of two sorts. A syscall.Errno is what the file
// system of a real boot server would say and is final. Any other error wraps
// eboot.ErrNotFound, eboot.ErrDamaged or eboot.ErrUnavailable and no Errno: the name exists
// and its content cannot be had now.
//
// A Tree never changes, and its methods may be called from any goroutine; only
// the caches of archives inside have locks. It starts no goroutine.
package bundlefs
