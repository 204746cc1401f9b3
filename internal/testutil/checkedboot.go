package testutil

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// CheckedBoot is a boot whose every file is shown to the test. It is that of a slave with
// eboot's loader, or with the stock one, as its boot script says.
type CheckedBoot struct {
	Script string   // the boot script, as the slave asks for it
	Stock  bool     // the script is to start no loader
	Plan   bool     // a slave with the loader wants what boots like this one need
	Files  []string // paths below the root of the bundle that it asks for
	Listed string   // a directory below it that a stock slave lists first; empty: none
}

// CheckedSession is a Session that boots so.
type CheckedSession struct {
	*Session
	Refusals int // servers that would not open a session

	loader time.Time     // when its loader started
	took   time.Duration // from there to the end of the boot, once it has ended
}

// NewCheckedSession connects to nothing yet. The session is for one boot.
func NewCheckedSession(opts SessionOptions) *CheckedSession {
	s := &CheckedSession{}
	opts.Age = func() time.Duration { return time.Since(s.loader) }
	s.Session = NewSession(opts)
	return s
}

// refusedPause is between two servers that will not open a session.
const refusedPause = 100 * time.Millisecond

// Boot does what a slave does on the wire, from the search to the end of its boot, and
// goes on with another server when one is lost or will not serve it. each is given the script
// first, then the files as they come; its errors end the boot. The session can Stay and Load afterwards.
func (s *CheckedSession) Boot(ctx context.Context, b CheckedBoot, each func(path string, content []byte) error) error {
	var script []byte
	err := s.persist(ctx, func() (err error) {
		script, err = s.Script(b.Script)
		if b.Stock && script != nil && errors.Is(err, ErrRefused) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("boot script: %w", err)
	}
	if b.Stock != (s.arguments == nil) {
		return fmt.Errorf("boot script starts eboot's loader: %t: %w", s.arguments != nil, ErrRefused)
	}
	s.loader = time.Now()
	if err := each(b.Script, script); err != nil {
		return err
	}
	if b.Stock {
		return s.bootStock(ctx, b, each)
	}
	return s.bootCured(ctx, b, each)
}

// bootStock asks for one file after another; nothing tells the server that it is done.
func (s *CheckedSession) bootStock(ctx context.Context, b CheckedBoot, each func(string, []byte) error) error {
	if b.Listed != "" {
		err := s.persist(ctx, func() error {
			_, err := s.Request(Tuple{Atom("list_dir"), s.opts.Root + "/" + b.Listed})
			return err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", b.Listed, err)
		}
	}
	for _, path := range b.Files {
		content, err := s.Load(ctx, path)
		if err == nil {
			err = each(path, content)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bootCured opens a session, fetches all at once, and reports the end.
func (s *CheckedSession) bootCured(ctx context.Context, b CheckedBoot, each func(string, []byte) error) error {
	want := []string{"tree"}
	if b.Plan {
		want = append(want, "plan")
	}
	var files []string
	var wrong error
	s.opts.OnFile = func(path string, content any) {
		data, err := fileContent(content)
		if err == nil {
			err = each(path, data)
		}
		if err != nil && wrong == nil {
			wrong = fmt.Errorf("file %s: %w", path, err)
		}
	}
	err := s.persist(ctx, func() error {
		o, err := s.open(ctx, want...)
		if err != nil {
			return err
		}
		if named := s.Bundle(); o.Bundle != named {
			return fmt.Errorf("session of bundle %s for a boot script of %s", o.Bundle, named)
		}
		files = o.Plan
		return nil
	})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	for _, asked := range []bool{true, false} { // the plan's files come without a further request
		err = s.persist(ctx, func() error {
			if asked && !b.Plan || !asked && len(files) == 0 {
				return nil
			}
			if !asked {
				if err := s.again(ctx); err != nil {
					return err
				}
				if err := s.Fetch(files); err != nil {
					return err
				}
			}
			asked = false
			n, err := s.ReadFiles(files)
			files = files[n:]
			return err
		})
		if err != nil {
			return fmt.Errorf("files: %w", err)
		}
		files = b.Files
	}
	if wrong != nil {
		return wrong
	}
	s.took = time.Since(s.loader)
	return s.persist(ctx, func() error {
		if err := s.again(ctx); err != nil {
			return err
		}
		return s.Report(Phase{"started", s.took})
	})
}

// fileContent is what an eboot_file frame holds.
func fileContent(content any) ([]byte, error) {
	if packed, ok := element(content, 1).([]byte); ok && element(content, 0) == Atom("packed") {
		var err error
		if content, err = Decode(packed); err != nil {
			return nil, fmt.Errorf("packed content: %w", err)
		}
	}
	data, ok := content.([]byte)
	if !ok {
		return nil, fmt.Errorf("%w: content %s", ErrRefused, Format(content))
	}
	return data, nil
}

// open opens the bundle, and takes a server that will not for one that is lost, as the
// loader does.
func (s *CheckedSession) open(ctx context.Context, want ...string) (Opened, error) {
	o, err := s.Open(want...)
	if !errors.Is(err, ErrRefused) {
		return o, err
	}
	s.Refusals++
	pause := time.NewTimer(refusedPause)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return o, fmt.Errorf("%w: %w", net.ErrClosed, err)
}

// again opens the bundle on a connection that is new.
func (s *CheckedSession) again(ctx context.Context) error {
	if s.opened {
		return nil
	}
	_, err := s.open(ctx)
	return err
}

// Bundle is what the boot script of a slave with the loader names; empty: nothing.
func (s *CheckedSession) Bundle() string {
	name, _ := s.argument("bundle").([]byte)
	return string(name)
}

// Load asks for one file below the root, as a node that loads code, from another server when
// this one is lost.
func (s *CheckedSession) Load(ctx context.Context, path string) ([]byte, error) {
	var content []byte
	err := s.persist(ctx, func() error {
		if s.arguments != nil {
			if err := s.again(ctx); err != nil {
				return err
			}
		}
		reply, err := s.Request(Tuple{Atom("get"), s.opts.Root + "/" + path})
		if err != nil {
			return err
		}
		data, ok := element(element(reply, 1), 1).([]byte)
		if !ok {
			return fmt.Errorf("%w: %s", ErrRefused, Format(reply))
		}
		content = data
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", path, err)
	}
	return content, nil
}

// Stay keeps the connection for a while, or until ctx ends. When it is lost, a slave with the
// loader opens another and reports again.
func (s *CheckedSession) Stay(ctx context.Context, d time.Duration) error {
	end := time.Now().Add(d)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(end) {
		end = deadline
	}
	for time.Now().Before(end) && ctx.Err() == nil {
		if s.conn == nil {
			if s.arguments == nil { // it will connect when it needs something
				pause := time.NewTimer(time.Until(end))
				defer pause.Stop()
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
				return nil
			}
			err := s.persist(ctx, func() error {
				if err := s.again(ctx); err != nil {
					return err
				}
				return s.Report(Phase{"started", s.took})
			})
			if err != nil {
				return err
			}
		}
		step := time.Now().Add(100 * time.Millisecond) // ctx may end without a deadline
		if step.After(end) {
			step = end
		}
		if err := s.conn.SetReadDeadline(step); err != nil {
			return err
		}
		// What comes now are signs of life, or an order that this slave does not know.
		if _, err := s.conn.Read(make([]byte, 256)); err != nil && !timedOut(err) {
			s.Close()
			s.Switches++
			s.Loss = err
		}
	}
	return nil
}
