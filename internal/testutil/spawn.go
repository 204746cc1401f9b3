package testutil

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Spawn starts cmd as the leader of a process group of its own, in ns when that is
// not nil: a child inherits the namespace of the thread that starts it. What cmd.Wait
// returned is sent once, when the child has ended.
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
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
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
