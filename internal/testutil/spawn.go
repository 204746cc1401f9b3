package testutil

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spawn starts cmd as the leader of a process group of its own, in ns when that is
// not nil: a child inherits the namespace of the thread that starts it. What cmd.Wait
// returned is sent once, when the child has ended.
//
// A child with a Chroot sees the directory for temporary files of this machine, and the
// chroot itself under its own name: paths of both mean the same inside and outside.
//
// The kernel kills the child when this process ends, however it ends (PR_SET_PDEATHSIG,
// prctl(2)): a test that is killed leaves no nodes and no servers behind. What counts there
// is the thread that started the child, and so that thread stays until the child has ended.
func Spawn(cmd *exec.Cmd, ns *Namespace) (<-chan error, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := startIn(cmd, ns); err != nil {
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return ended, nil
}

func startIn(cmd *exec.Cmd, ns *Namespace) error {
	if ns != nil {
		if err := ns.enter(); err != nil {
			return err
		}
	}
	if chroot := cmd.SysProcAttr.Chroot; chroot != "" {
		if err := shareFiles(chroot); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return nil
}

// shareFiles gives the calling thread mounts of its own, in which chroot holds what Spawn
// says. They vanish with the last process that sees them.
func shareFiles(chroot string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{os.TempDir(), chroot} {
		at := filepath.Join(chroot, dir)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s in %s: %w", dir, chroot, err)
		}
	}
	return nil
}

// enter moves the calling thread into the namespace.
func (n *Namespace) enter() error {
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}
