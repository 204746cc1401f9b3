package filestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"eboot"
)

// chunk is how much is read from a file at a time; align is what O_DIRECT wants
// of addresses, offsets and lengths on every common device.
const (
	chunk = 256 << 10
	align = 4096
)

var buffers = sync.Pool{New: func() any {
	raw := make([]byte, chunk+align)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & (align - 1))
	buf := raw[skip : skip+chunk]
	return &buf
}}

// buffer returns a chunk of aligned memory, to be given back to buffers.
func (s *Store) buffer() *[]byte { return buffers.Get().(*[]byte) }

// Verify hashes the blob now, from the medium where the file system allows it.
// Errors are those of Content, and that of ctx.
func (s *Store) Verify(ctx context.Context, d eboot.Digest, size int64) error {
	stored, ok := s.size(d)
	if !ok {
		return s.absent(d)
	}
	if err := s.hash(d, stored, func(int) error { return ctx.Err() }); err != nil {
		return err
	}
	if stored != size {
		return fmt.Errorf("blob %s: has %d bytes, not %d: %w", d, stored, size, eboot.ErrInvalid)
	}
	return nil
}

// hash verifies the blob past the page cache, so that rot below it is seen and
// the pages that slaves are being served from stay. File systems without
// O_DIRECT are read the ordinary way.
func (s *Store) hash(d eboot.Digest, size int64, pace func(n int) error) error {
	buf := s.buffer()
	defer buffers.Put(buf)
	for _, flags := range []int{syscall.O_DIRECT, 0} {
		f, info, err := s.open(d, flags)
		if errors.Is(err, unix.EINVAL) && flags != 0 {
			continue
		}
		if err != nil {
			return err
		}
		err = s.check(d, size, f, info, *buf, pace)
		f.Close() // read only: nothing to lose
		if errors.Is(err, unix.EINVAL) && flags != 0 {
			continue
		}
		return err
	}
	return nil
}

// check hashes f, the open file of the blob, and draws the conclusion: the blob
// is set aside, or its stamp, from info, is noted. pace, when not nil, is called after each
// chunk with its length, and its error ends the check.
func (s *Store) check(d eboot.Digest, size int64, f *os.File, info os.FileInfo, buf []byte, pace func(n int) error) error {
	if info.Size() != size {
		return s.setAside(d, info, fmt.Sprintf("%d bytes on disk instead of %d", info.Size(), size))
	}
	h := sha256.New()
	for left := size; left > 0; {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		left -= int64(n)
		switch {
		case err == io.EOF || err == nil && n == 0:
			return s.setAside(d, info, "file became shorter")
		case err != nil && isDamage(err):
			return s.setAside(d, info, err.Error())
		case err != nil:
			return fmt.Errorf("read blob: %w", err)
		}
		if pace != nil {
			if err := pace(n); err != nil {
				return err
			}
		}
	}
	if !bytes.Equal(h.Sum(nil), d[:]) {
		return s.setAside(d, info, "content does not match its digest")
	}
	if size > s.opts.CacheFileMax {
		// As it was before it was read: if it changed meanwhile, its stamp is another
		// by now, and the next open checks again.
		s.mu.Lock()
		if _, ok := s.sizes[d]; ok {
			s.verified[d] = stampOf(info)
		}
		s.mu.Unlock()
	}
	return nil
}

// Run is the scrubber: it hashes every blob once per ScrubPeriod, one chunk at a
// time, spread evenly over the period, and past the caches. Damage goes to
// OnDamage. It returns nil when ctx ends.
//
// The 256 directories are taken in turn, a 256th of the period each; where to
// begin comes from the clock, so that a server that is restarted every day
// still comes round to each of them.
func (s *Store) Run(ctx context.Context) error {
	if s.opts.ScrubPeriod < 0 {
		<-ctx.Done()
		return nil
	}
	slot := s.opts.ScrubPeriod / 256
	for shard := time.Now().UnixNano() / int64(max(slot, 1)); ctx.Err() == nil; shard++ {
		s.scrubShard(ctx, byte(shard), slot)
	}
	return nil
}

func (s *Store) scrubShard(ctx context.Context, shard byte, slot time.Duration) {
	type blob struct {
		digest eboot.Digest
		size   int64
	}
	var blobs []blob
	var total int64 // what the shard weighs: bytes, and something for opening each
	s.mu.RLock()
	for d, size := range s.sizes {
		if d[0] == shard {
			blobs = append(blobs, blob{d, size})
			total += size + align
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(blobs, func(a, b blob) int { return bytes.Compare(a.digest[:], b.digest[:]) })

	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := func(share float64) error {
		timer.Reset(time.Until(began.Add(time.Duration(share * float64(slot)))))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		}
	}
	var done int64
	pace := func(n int) error {
		done += int64(n)
		return wait(float64(done) / float64(total))
	}
	for _, b := range blobs {
		if !s.Has(b.digest) {
			continue
		}
		if err := s.hash(b.digest, b.size, pace); err != nil && ctx.Err() == nil && !errors.Is(err, eboot.ErrDamaged) && !errors.Is(err, eboot.ErrNotFound) {
			s.log.Warn("scrubber cannot read a blob", "digest", b.digest, "error", err)
		}
		if pace(align) != nil {
			return
		}
	}
	_ = wait(1) // what removed and damaged blobs left over, or ctx ends
}
