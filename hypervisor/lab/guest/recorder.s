# A guest of one sector, which the firmware boots from the first disk in less
# than a second: no operating system, and yet a guest whose writes stand still
# when it is suspended and end when its QEMU dies.
#
# It writes numbered records for ever: number n fills slot 1 + n % 63 of every
# disk, one disk after the other. A slot begins every 64 KiB; a record is 16 KiB
# of the number. When n is on every disk it says so on the serial console. At a
# boot it looks for the greatest number on the first disk and goes on by writing
# that one again: it may have reached some of the disks only.
#
# What it prints, each with eight hex digits:
#   B n  it has booted and found n
#   A n  record n is on every disk, flushed: the disks write through
#   V n  the slot held neither n nor the record before it: data was lost
#   E n  the disk failed; the guest stops
	.code16
	.set slots, 63
	.set ticks, 3		# of 18 a second, between two records
	.set found, 0x8000	# where one sector is read to
	.set drives, 0x475	# the firmware's count of hard disks

	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	cld
	sti

	xorl %ebp, %ebp		# the number
	movb $0x80, %dl		# the disk
	xorl %ebx, %ebx		# the slot
find:	call readslot
	movl found, %eax
	cmpl %ebp, %eax
	jbe 1f
	movl %eax, %ebp
1:	incw %bx
	cmpw $slots, %bx
	jb find
	movb $'B', %al
	call say
	testl %ebp, %ebp
	jnz record
next:	incl %ebp
record:	movl %ebp, %eax
	xorl %edx, %edx
	movl $slots, %ecx
	divl %ecx
	movl %edx, %ebx
	movw $0x1000, %ax	# the record is made at 0x10000
	movw %ax, %es
	xorw %di, %di
	movl %ebp, %eax
	movw $4096, %cx
	rep stosl
	movb $0x80, %dl
disk:	call readslot
	movl found, %eax
	cmpl %ebp, %eax
	je write
	addl $slots, %eax
	cmpl %ebp, %eax
	je write
	cmpl $slots, %eax	# an empty slot is right for the first round
	jne wrong
	cmpl $slots, %ebp
	jbe write
wrong:	movb $'V', %al
	call say
write:	movw $to, %si
	movw $0x4300, %ax
	int $0x13
	jc fail
	incb %dl
	movb %dl, %al
	subb $0x80, %al
	cmpb drives, %al
	jb disk
	movb $'A', %al
	call say
	movw $ticks, %cx
1:	hlt
	loop 1b
	jmp next

fail:	movb $'E', %al
	call say
1:	hlt
	jmp 1b

# readslot reads the first sector of slot %bx of disk %dl, and lets the next
# write go to that slot.
readslot:
	movzwl %bx, %eax
	incl %eax
	shll $7, %eax
	movl %eax, from+8
	movl %eax, to+8
	movw $from, %si
	movb $0x42, %ah
	int $0x13
	jc fail
	ret

# say prints the letter in %al and the number.
say:	call print
	movw $8, %cx
1:	roll $4, %ebp
	movw %bp, %ax
	andb $15, %al
	cmpb $10, %al
	sbbb $0x69, %al
	das			# 0 to 15 has become 0 to 9, A to F
	call print
	loop 1b
	movb $'\n', %al
print:	pushw %dx
	pushw %ax
	movw $0x3fd, %dx
1:	inb %dx, %al
	testb $0x20, %al
	jz 1b
	popw %ax
	movw $0x3f8, %dx
	outb %al, %dx
	popw %dx
	ret

	.balign 4
from:	.word 16, 1, found, 0	# the firmware's packets: sectors, where in memory,
	.quad 0			# and where on the disk
to:	.word 16, 32, 0, 0x1000
	.quad 0

	.org 510
	.word 0xaa55
