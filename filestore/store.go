package filestore

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"eboot"
	"eboot/filestore/internal/lru"
	"eboot/internal/fsutil"
)

// Defaults of Options.
const (
	DefaultCacheBytes   = 24 << 20
	DefaultCacheFileMax = 256 << 10
	DefaultScrubPeriod  = 24 * time.Hour
	DefaultMinFree      = 256 << 20
)

// Options say where blobs are and how much may be spent on them.
type Options struct {
	// Dir holds the store. It is made when missing, with its parents.
	Dir string
	// CacheBytes bounds the memory for contents of small blobs. Zero means
	// DefaultCacheBytes: several times the 7 MB that one OTP node loads.
	CacheBytes int64
	// CacheFileMax is the size in bytes up to which a blob is small: read whole,
	// verified and cached. Zero means DefaultCacheFileMax.
	CacheFileMax int64
	// OnDamage, when set, is told of every blob found damaged or missing. It is
	// called without locks held, from the goroutine that found it, and must not block.
	OnDamage func(eboot.DamagedBlob)
	// Logger; nil means none.
	Logger hclog.Logger
	// ScrubPeriod is the time in which Run hashes every blob once. Zero means
	// DefaultScrubPeriod; negative: never.
	ScrubPeriod time.Duration
	// MinFree is the space in bytes that Put leaves free on the file system. Raft
	// cannot store a vote on a full disk and panics then (rule R12), so
	// blobs, which can be sent again, must stop first. Zero means
	// DefaultMinFree; negative: no floor.
	MinFree int64
}

// Store is an open blob store.
type Store struct {
	opts  Options
	log   hclog.Logger
	lock  *os.File
	cache *lru.Cache[eboot.Digest, []byte]
	names atomic.Uint64 // of unfinished files

	verifying singleflight.Group // large blobs being hashed, by digest

	committing sync.Mutex // one Commit at a time
	files      sync.Mutex // held while a blob's file appears or goes
	protection protection

	mu sync.RWMutex
	index
}

// index is what the store knows of its blobs, in memory.
type index struct {
	sizes    map[eboot.Digest]int64 // blobs on disk and not known to be damaged
	verified map[eboot.Digest]stamp // large blobs: the file as it was when last hashed
	damaged  map[eboot.Digest]damage
	bytes    int64 // sum of sizes
}

// Open opens the store in opts.Dir and makes it when there is none. It removes
// what an interrupted run left unfinished and lists names and sizes; it hashes nothing.
// A store that another process has open is eboot.ErrConflict.
func Open(opts Options) (_ *Store, err error) {
	if opts.CacheBytes == 0 {
		opts.CacheBytes = DefaultCacheBytes
	}
	if opts.CacheFileMax == 0 {
		opts.CacheFileMax = DefaultCacheFileMax
	}
	if opts.ScrubPeriod == 0 {
		opts.ScrubPeriod = DefaultScrubPeriod
	}
	if opts.MinFree == 0 {
		opts.MinFree = DefaultMinFree
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	// A shard must hold several of the largest cached files, or the cache would
	// forget a file as soon as its neighbour comes.
	shards := int(min(16, max(1, opts.CacheBytes/(4*opts.CacheFileMax))))
	s := &Store{
		opts:  opts,
		log:   opts.Logger,
		cache: lru.New[eboot.Digest, []byte](opts.CacheBytes, shards, func(d eboot.Digest) uint32 { return uint32(d[31]) }),
		index: index{
			sizes:    make(map[eboot.Digest]int64),
			verified: make(map[eboot.Digest]stamp),
			damaged:  make(map[eboot.Digest]damage),
		},
		protection: newProtection(),
	}
	if err := s.makeDirs(); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	if s.lock, err = lockFile(filepath.Join(opts.Dir, "lock")); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("open blob store: %w", errors.Join(err, s.lock.Close()))
	}
	return s, nil
}

// Close releases the store. Ingests must be closed and Run must have returned;
// files that Content gave out stay readable.
func (s *Store) Close() error { return s.lock.Close() }

// Has reports whether the blob is on disk and not known to be damaged. It asks
// memory only.
func (s *Store) Has(d eboot.Digest) bool {
	_, ok := s.size(d)
	return ok
}

// Digests returns the digest of every blob that Has is true for, in no order.
func (s *Store) Digests() []eboot.Digest {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Keys(s.sizes))
}

func (s *Store) size(d eboot.Digest) (int64, bool) {
	s.mu.RLock()
	size, ok := s.sizes[d]
	s.mu.RUnlock()
	return size, ok
}

// Damaged returns the blobs that were found damaged or missing and were not put
// again since, sorted by digest. Quarantined blobs are remembered across restarts.
func (s *Store) Damaged() []eboot.DamagedBlob {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]eboot.DamagedBlob, 0, len(s.damaged))
	for _, x := range s.damaged {
		out = append(out, x.DamagedBlob)
	}
	slices.SortFunc(out, func(a, b eboot.DamagedBlob) int { return slices.Compare(a.Digest[:], b.Digest[:]) })
	return out
}

// Summary counts what the store holds. FreeBytes is what an unprivileged process
// may still write, 0 when the file system does not say.
func (s *Store) Summary() eboot.StorageSummary {
	s.mu.RLock()
	sum := eboot.StorageSummary{Blobs: len(s.sizes), Bytes: s.bytes}
	s.mu.RUnlock()
	if free, err := s.free(); err == nil {
		sum.FreeBytes = free
	}
	if entries, err := os.ReadDir(s.quarantineDir()); err == nil {
		sum.Quarantined = len(entries)
	}
	return sum
}

func (s *Store) blobDir() string       { return filepath.Join(s.opts.Dir, "blobs") }
func (s *Store) quarantineDir() string { return filepath.Join(s.opts.Dir, "quarantine") }

// shardDir is the directory of the blobs whose digest begins with b.
func (s *Store) shardDir(b byte) string {
	const digits = "0123456789abcdef"
	return s.opts.Dir + "/blobs/" + string([]byte{digits[b>>4], digits[b&15]})
}

func (s *Store) path(d eboot.Digest) string { return s.shardDir(d[0]) + "/" + d.String() }

// unfinished is how the name of a file begins that is no blob yet, or no longer.
const unfinished = "unfinished-"

// tmpPath returns a new name beside that of d: the kernel renames within one directory
// under the lock of that alone, and side by side with others.
func (s *Store) tmpPath(d eboot.Digest) string {
	return fmt.Sprintf("%s/%s%x", s.shardDir(d[0]), unfinished, s.names.Add(1))
}

// free returns the bytes that may still be written to the file system.
func (s *Store) free() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &fs); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", s.opts.Dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// Room returns the bytes that Put may still write before it refuses, 0 or more.
func (s *Store) Room() (int64, error) {
	free, err := s.free()
	return max(0, free-max(0, s.opts.MinFree)), err
}

// makeDirs makes every directory at once, so that a Commit never has to make one
// durable.
func (s *Store) makeDirs() error {
	for _, dir := range []string{s.blobDir(), s.quarantineDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	made := false
	for b := range 256 {
		switch err := os.Mkdir(s.shardDir(byte(b)), 0o700); {
		case err == nil:
			made = true
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	if !made {
		return nil
	}
	return errors.Join(fsutil.SyncDir(s.blobDir()), fsutil.SyncDir(s.opts.Dir), fsutil.SyncDir(filepath.Dir(s.opts.Dir)))
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("another process has it open: %w", eboot.ErrConflict)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// scan fills the index from the names and sizes on disk, and removes what is
// unfinished. Other files that are no blobs are left alone and never served.
func (s *Store) scan() error {
	foreign, removed := 0, 0
	for b := range 256 {
		dir := s.shardDir(byte(b))
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), unfinished) {
				if err := os.Remove(dir + "/" + e.Name()); err != nil {
					return err
				}
				removed++
				continue
			}
			d, err := eboot.ParseDigest(e.Name())
			if err != nil || int(d[0]) != b || !e.Type().IsRegular() {
				foreign++
				continue
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			s.sizes[d] = info.Size()
			s.bytes += info.Size()
		}
	}
	if removed > 0 {
		s.log.Info("removed unfinished blobs", "files", removed)
	}
	if foreign > 0 {
		s.log.Warn("files in the blob directory are no blobs, ignored", "files", foreign)
	}
	entries, err := os.ReadDir(s.quarantineDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		at, hex, _ := strings.Cut(e.Name(), "-")
		d, err := eboot.ParseDigest(hex)
		if _, whole := s.sizes[d]; err != nil || whole {
			continue
		}
		found, _ := time.Parse(quarantineTime, at)
		s.damaged[d] = damage{DamagedBlob: eboot.DamagedBlob{Digest: d, Found: found, Reason: "quarantined before the latest start"}}
	}
	return nil
}
